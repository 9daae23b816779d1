"""Which crops make up a step: the same for any number of workers, and each as often as it should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.sampling import (
    ANY,
    balanced,
    crop_generator,
    epoch_order,
    pixel_of,
    share,
    steps_per_epoch,
    worker_seed,
)

small = st.integers(1, 20)


@settings(deadline=None)
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


@settings(deadline=None)
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
    firsts = set()
    for epoch in range(1, 6):
        order = epoch_order(12, crops_per_image=5, positions=60, together=3, seed=0, epoch=epoch)
        groups = [frozenset(order[k : k + 15].tolist()) for k in range(0, 60, 15)]
        assert [len(group) for group in groups] == [3] * 4
        assert frozenset.union(*groups) == set(range(12))
        assert any(order[k] != order[k + 1] for k in range(4))
        firsts.add(groups[0])
    assert len(firsts) > 1  # images are grouped differently in other epochs


def test_no_two_streams_of_random_numbers_coincide():
    draws = [crop_generator(s, e, p).random() for s in range(3) for e in range(3) for p in range(20)]
    draws += [worker_seed(s, e, r) for s in range(3) for e in range(3) for r in range(3)]
    assert len(set(draws)) == len(draws)


def drawn(counts: np.ndarray, part: float, positions: int, *, span: int = 10**6, crops: int = 1, epoch: int = 1):
    order = np.arange(positions) % len(counts)
    return balanced(order, counts, part=part, span=span, crops=crops, seed=5, epoch=epoch)


def test_rare_classes_are_seen_as_often_as_common_ones():
    """Class 2 is in image 1 and, a third as much, in image 3; class 1 is nowhere."""
    counts = np.array([[1000, 0, 0], [900, 0, 30], [1000, 0, 0], [1000, 0, 10]])
    result = drawn(counts, 0.5, 20_000)
    labels = result[:, 1]
    assert np.bincount(labels + 1, minlength=4) / 20_000 == pytest.approx([0.5, 0.25, 0, 0.25], abs=0.02)
    assert np.bincount(result[labels == 2, 0], minlength=4) / (labels == 2).sum() == pytest.approx(
        [0, 0.75, 0, 0.25], abs=0.03
    )
    shares = counts[:, 0] / counts[:, 0].sum()
    assert np.bincount(result[labels == 0, 0]) / (labels == 0).sum() == pytest.approx(shares, abs=0.03)
    others = labels == ANY
    assert np.array_equal(result[others, 0], (np.arange(20_000) % 4)[others])  # the others as without balance


@settings(deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=8),
    part=st.floats(0, 1),
    span=st.integers(1, 40),
    crops=st.integers(1, 9),
    positions=st.integers(1, 60),
)
def test_a_drawn_image_has_the_class_that_it_is_drawn_for(counts, part, span, crops, positions):
    counts = np.array(counts)
    result = drawn(counts, part, positions, span=span, crops=crops)
    assert result.shape == (positions, 2)
    by_class = result[result[:, 1] != ANY]
    assert (counts[by_class[:, 0], by_class[:, 1]] > 0).all()
    assert len(by_class) == 0 or part > 0
    assert len(by_class) == positions or part < 1 or not counts.any()
    for start in range(0, positions, span):  # few images are decoded for these in each span
        chosen = result[start : start + span]
        chosen = chosen[chosen[:, 1] != ANY]
        assert len(np.unique(chosen, axis=0)) <= -(-len(chosen) // crops)


def test_crops_of_a_drawn_image_are_spread_over_the_span():
    """Otherwise a batch would hold many crops of one image."""
    found = drawn(np.ones((100, 3), np.int64), 1.0, 400, crops=8)
    assert (found[:, 1] != ANY).all()
    assert (found[1:] == found[:-1]).all(axis=1).mean() < 0.2


def test_what_is_drawn_follows_from_seed_and_epoch():
    counts = np.ones((50, 4), np.int64)
    first, again, other = (drawn(counts, 0.3, 500, epoch=epoch) for epoch in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_balance_or_classes_nothing_is_drawn():
    for counts, part in ((np.ones((4, 2), np.int64), 0.0), (np.zeros((4, 2), np.int64), 1.0)):
        assert drawn(counts, part, 12).tolist() == [[k % 4, ANY] for k in range(12)]


def test_every_pixel_of_a_class_is_as_likely():
    mask = np.zeros((5, 7), np.uint8)
    places = [(0, 0), (0, 6), (2, 3), (4, 6)]
    for place in places:
        mask[place] = 3
    rng = np.random.default_rng(0)
    found = [pixel_of(mask, 3, rng) for _ in range(2000)]
    assert set(found) == set(places)
    assert min(found.count(place) for place in places) > 400
    assert pixel_of(mask, 1, rng) is None
