"""Reading ahead keeps order and bounds; the cache reads once and stays small; the bands are those of the spec."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segray.augment import Augment
from segray.datasets import Labelled
from segray.loading import Batch, CropLoader, ImageCache, reading_threads
from segray.ordered import in_order
from segray.sampling import ANY, balanced, epoch_order


def labelled(size: int = 8, value: int = 0) -> Labelled:
    shape = (size, size)
    return Labelled(
        pixels=np.full((1, *shape), value, np.uint8), valid=np.ones(shape, bool), mask=np.zeros(shape, np.uint8)
    )


@pytest.mark.parametrize(("count", "ahead"), [(0, 3), (1, 3), (3, 3), (20, 1), (20, 5)])
def test_results_come_in_order_and_few_are_under_way(count: int, ahead: int) -> None:
    lock, started, most, taken = threading.Lock(), 0, 0, 0

    def work(item: int) -> int:
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - taken)
        time.sleep(0.001 * (item % 3))
        return item

    with ThreadPoolExecutor(4) as pool:
        results = []
        for result in in_order(work, range(count), pool=pool, ahead=ahead):
            results.append(result)
            with lock:
                taken += 1
    assert results == list(range(count))
    assert most <= ahead + 1


def test_an_error_is_raised_in_its_turn() -> None:
    with ThreadPoolExecutor(4) as pool:
        results = in_order(lambda item: 1 // (item - 2), range(9), pool=pool, ahead=9)
        assert [next(results), next(results)] == [-1, -1]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_an_image_that_several_threads_want_is_read_once() -> None:
    reads = []

    def read(index: int) -> Labelled:
        reads.append(index)
        time.sleep(0.01)
        return labelled(value=index)

    cache = ImageCache(read)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(cache.get, [0, 1, 2] * 8))
    assert sorted(reads) == [0, 1, 2]
    assert [int(image.pixels[0, 0, 0]) for image in images] == [0, 1, 2] * 8


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    reads = []

    def read(index: int) -> Labelled:
        reads.append(index)
        return labelled(size=8)  # 3 bytes a pixel: 192 bytes

    cache = ImageCache(read, max_bytes=2 * 192)
    for index in (0, 1, 0, 2, 0, 1):
        cache.get(index)
    assert reads == [0, 1, 2, 1]


def test_an_image_larger_than_the_cache_is_read_all_the_same() -> None:
    assert ImageCache(lambda _: labelled(), max_bytes=1).get(0).mask.shape == (8, 8)


def test_an_image_that_cannot_be_read_is_an_error_each_time() -> None:
    def fail(index: int) -> Labelled:
        raise OSError(f"image {index} is gone")

    cache = ImageCache(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="image 3 is gone"):
            cache.get(3)


def test_two_that_read_the_same_image_count_its_bytes_once() -> None:
    first, second, go = threading.Event(), threading.Event(), threading.Event()

    def read(index: int) -> Labelled:
        if not first.is_set():
            first.set()
            go.wait(30)
            raise OSError("the store does not answer")
        if not second.is_set():
            second.set()
            time.sleep(0.2)  # meanwhile another thread, which did not wait, reads it too
        return labelled(size=8)

    cache = ImageCache(read, max_bytes=3 * 192)
    with ThreadPoolExecutor(3) as pool:
        failing = pool.submit(cache.get, 0)
        first.wait(30)
        waiting = pool.submit(cache.get, 0)  # waits on the lock that the failing one releases
        time.sleep(0.1)
        go.set()
        with pytest.raises(OSError, match="does not answer"):
            failing.result()
        second.wait(30)
        newcomer = pool.submit(cache.get, 0)
        waiting.result(), newcomer.result()
    assert cache._taken == 192 * len(cache._values) == 192


def loader_of(cache: ImageCache, pool: ThreadPoolExecutor, **changes: object) -> CropLoader:
    """The loader of one worker that takes one plain crop a step."""
    augment = Augment.named("none", crop=4, scale_range=(1, 1), nadir=True)
    values = {"augment": augment, "batch_size": 1, "rank": 0, "world_size": 1, "seed": 1, **changes}
    return CropLoader(cache=cache, pool=pool, **values)


def batches_of(loader: CropLoader, order: np.ndarray) -> Iterator[Batch]:
    """The batches of one epoch."""
    steps = len(order) // loader.batch_size
    return loader.batches(lambda _: order, steps=range(steps), per_epoch=steps)


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_workers_together_see_the_crops_that_one_would(world_size: int, part: float) -> None:
    rng = np.random.default_rng(0)
    images = [
        Labelled(
            pixels=rng.integers(0, 255, (3, 40, 50), np.uint8),
            valid=np.ones((40, 50), bool),
            mask=rng.integers(0, 4, (40, 50), np.uint8),
        )
        for _ in range(5)
    ]
    order = epoch_order(5, crops_per_image=3, positions=12, together=2, seed=7, epoch=2)
    counts = np.stack([np.bincount(image.mask.ravel(), minlength=4) for image in images])
    order = balanced(order, counts, part=part, span=6, crops=1, seed=7, epoch=2)

    def crops(rank: int, world_size: int, pool: ThreadPoolExecutor) -> list[list[bytes]]:
        cache, place = ImageCache(images.__getitem__), {"rank": rank, "world_size": world_size}
        loader = loader_of(cache, pool, augment=Augment(crop=16), batch_size=4, seed=7, **place)
        return [
            [pixels.numpy().tobytes() + mask.numpy().tobytes() for pixels, mask in zip(batch.pixels, batch.mask)]
            for batch in loader.batches(lambda _: order, steps=range(3, 6), per_epoch=3)
        ]

    with reading_threads(3) as pool:
        alone = crops(0, 1, pool)
        workers = [crops(rank, world_size, pool) for rank in range(world_size)]
    assert len(alone) == 3
    for step, expected in enumerate(alone):
        assert sorted(crop for worker in workers for crop in worker[step]) == sorted(expected)


def test_crops_that_are_drawn_by_class_hold_it() -> None:
    rng = np.random.default_rng(0)
    masks = [np.zeros((60, 60), np.uint8) for _ in range(4)]
    masks[1][50:, 57:] = 1
    masks[3][0, 0] = 2
    images = [Labelled(pixels=mask[None], valid=mask < 9, mask=mask) for mask in masks]
    counts = np.stack([np.bincount(mask.ravel(), minlength=3) for mask in masks])
    order = balanced(rng.integers(0, 4, 40), counts, part=0.6, span=40, crops=1, seed=1, epoch=1)
    with reading_threads(2) as pool:
        augment = Augment.named("none", crop=8, scale_range=(1, 1), nadir=True)
        loader = loader_of(ImageCache(images.__getitem__), pool, augment=augment, batch_size=4)
        crops = [mask.numpy() for batch in batches_of(loader, order) for mask in batch.mask]
    held = [[label in crop for label in (1, 2)] for crop in crops]
    for (_, label), (one, two) in zip(order.tolist(), held, strict=True):
        assert one or label != 1
        assert two or label != 2
    assert sum(one for one, _ in held) >= (order[:, 1] == 1).sum() > 4
    assert sum(two for _, two in held) >= (order[:, 1] == 2).sum() > 4


def test_a_class_that_the_image_has_no_data_of_is_no_error() -> None:
    """The histogram counted a mask without its image's no-data pixels."""
    with reading_threads(1) as pool:
        loader = loader_of(ImageCache(lambda _: labelled()), pool, augment=Augment(crop=8))
        (batch,) = batches_of(loader, np.array([[0, 3]]))
    assert batch.mask.shape == (1, 8, 8)


def ordered(*images: int) -> np.ndarray:
    return np.array([[image, ANY] for image in images])


def settled(reads: list[int], count: int) -> list[int]:
    """What had been read a moment after that many reads had begun."""
    deadline = time.monotonic() + 10
    while len(reads) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    return sorted(reads)


@pytest.mark.parametrize(("images_in_half_of_the_cache", "expected"), [(100, [0, 1, 2, 3, 4, 5]), (2, [0, 1, 2])])
def test_images_are_read_before_their_crops_are_due_as_far_as_they_fit(
    images_in_half_of_the_cache: int, expected: list[int]
) -> None:
    reads: list[int] = []

    def read(index: int) -> Labelled:
        reads.append(index)
        return labelled()  # 192 bytes

    cache = ImageCache(read, max_bytes=2 * images_in_half_of_the_cache * 192)
    cache.get(0)
    with reading_threads(1) as pool:
        batches = batches_of(loader_of(cache, pool), ordered(*[0] * 50, 1, 2, 3, 4, 5))
        next(batches)
        assert settled(reads, len(expected)) == expected
        assert len(list(batches)) == 54
    assert set(reads) == {0, 1, 2, 3, 4, 5}


def test_what_is_wrong_with_an_image_that_is_read_ahead_is_said_in_its_turn() -> None:
    def read(index: int) -> Labelled:
        if index == 1:
            raise OSError("image 1 is gone")
        return labelled()

    with reading_threads(2) as pool:
        batches = batches_of(loader_of(ImageCache(read), pool), ordered(*[0] * 20, 1, 0))
        assert len([next(batches) for _ in range(20)]) == 20
        with pytest.raises(OSError, match="image 1 is gone"):
            next(batches)


@pytest.mark.parametrize("start", [0, 2, 5, 6])
def test_a_training_that_goes_on_anywhere_sees_the_crops_that_it_would_have_seen(start: int) -> None:
    orders = [ordered(*order) for order in np.random.default_rng(0).permuted([[0, 1, 2, 3, 4]] * 3, axis=1)]
    images = [labelled(size=20, value=value) for value in range(5)]

    def values(steps: range) -> list[int]:
        with reading_threads(2) as pool:
            batches = loader_of(ImageCache(images.__getitem__), pool)
            batches = batches.batches(lambda epoch: orders[epoch - 1], steps=steps, per_epoch=5)
            return [int(batch.pixels[0, 0, 0, 0]) for batch in batches]

    assert values(range(15)) == [int(image) for order in orders for image, _ in order]
    assert values(range(start, 15)) == values(range(15))[start:]


def test_the_crops_of_the_next_epoch_are_cut_before_they_are_asked_for() -> None:
    reads: list[int] = []

    def read(index: int) -> Labelled:
        reads.append(index)
        return labelled()

    with reading_threads(1) as pool:
        loader = loader_of(ImageCache(read), pool)
        batches = loader.batches(lambda epoch: ordered(epoch, epoch), steps=range(4), per_epoch=2)
        assert [next(batches), next(batches)]
        assert settled(reads, 2) == [1, 2]
        assert len(list(batches)) == 2
