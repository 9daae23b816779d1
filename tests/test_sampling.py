"""Which crops make up a step: the same whatever the number of workers, and each as often as it should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.sampling import crop_generator, epoch_order, share, steps_per_epoch, worker_seed

small = st.integers(1, 20)


@given(images=small, crops=small, batch=small, together=small, epoch=small)
def test_an_epoch_takes_every_crop_once_as_far_as_whole_batches_go(images, crops, batch, together, epoch):
    steps = steps_per_epoch(images, crops_per_image=crops, batch_size=batch)
    order = epoch_order(images, crops_per_image=crops, positions=steps * batch, together=together, seed=0, epoch=epoch)
    counts = np.bincount(order, minlength=images)
    assert order.shape == (steps * batch,)
    assert len(counts) == images
    if batch <= images * crops:
        assert counts.max() <= crops  # no crop is repeated
        assert (crops - counts).sum() == images * crops - steps * batch < batch  # and less than a batch is left out
    else:
        assert (steps, counts.min() > 0) == (1, True)  # too few crops for a batch: all are in it, some repeated


@given(batch_share=small, world_size=st.integers(1, 6), step=st.integers(0, 5))
def test_workers_share_a_step_equally_and_completely(batch_share, world_size, step):
    batch = batch_share * world_size
    parts = [share(step, batch_size=batch, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {batch_share}
    assert sorted(position for part in parts for position in part) == list(range(step * batch, (step + 1) * batch))


def test_orders_differ_between_epochs_and_seeds_and_repeat_for_the_same():
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_order(50, crops_per_image=1, positions=50, together=8, seed=seed, epoch=epoch).tolist()

    orders = [order(seed, epoch) for seed in range(4) for epoch in range(1, 5)]
    assert len({tuple(o) for o in orders}) == len(orders)
    assert order(3, 2) == order(3, 2)


def test_crops_are_mixed_among_the_images_that_are_together_only():
    order = epoch_order(12, crops_per_image=5, positions=60, together=3, seed=0, epoch=1)
    groups = [set(order[k : k + 15].tolist()) for k in range(0, 60, 15)]
    assert [len(group) for group in groups] == [3] * 4
    assert set.union(*groups) == set(range(12))
    assert any(order[k] != order[k + 1] for k in range(4))


def test_no_two_streams_of_random_numbers_coincide():
    draws = [crop_generator(s, e, p).random() for s in range(3) for e in range(3) for p in range(20)]
    draws += [worker_seed(s, e, r) for s in range(3) for e in range(3) for r in range(3)]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(
    ("images", "crops", "batch", "steps"), [(4, 1, 8, 1), (8, 1, 8, 1), (15, 1, 8, 1), (4, 4, 8, 2), (1, 1, 1, 1)]
)
def test_steps_are_whole_batches_but_at_least_one(images, crops, batch, steps):
    assert steps_per_epoch(images, crops_per_image=crops, batch_size=batch) == steps
