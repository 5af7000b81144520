"""The course's functions and dataset against its facts; batches."""

import itertools
import time

import numpy as np
import pytest
import torch
from conftest import save_photo
from torch.utils.data import DataLoader

from datasets import (
    CachedPixelationDataset,
    Key,
    RandomImagePixelationDataset,
    collate,
    draw_rectangle,
    prepare_image,
    stack_with_padding,
    to_grayscale,
)
from depixelation.images.cache import open_cache
from depixelation.tasks.depixelation import Depixelation

RANGES = (4, 32), (4, 32), (4, 16)


# ------------------------------------------------------------------------------------------------ the course's part


def test_grayscale_against_hand_computed_values():
    # Green alone: Y_linear = 0.7152, Y = 1.055 * 0.7152 ** (1 / 2.4) - 0.055 = 0.86248, times 255 = 219.93.
    # (10, 10, 10): C = 0.0392 <= 0.04045, linear 0.003035, and 12.92 times that is C again.
    # (200, 100, 50): linear 0.5776, 0.1274, 0.0319; Y_linear = 0.2162; Y = 0.5024, times 255 = 128.1.
    rgb = np.array(
        [[[0, 255, 0], [10, 10, 10], [255, 255, 255]], [[200, 100, 50], [255, 0, 0], [0, 0, 255]]], dtype=np.uint8
    )
    expected = [[[220, 10, 255], [128, 127, 76]]]
    gray = to_grayscale(rgb)
    assert gray.dtype == np.uint8 and gray.tolist() == expected
    assert to_grayscale(rgb.astype(np.int32)).tolist() == expected  # the table for uint8 and the formula agree
    as_float = to_grayscale(rgb.astype(np.float64))
    assert (
        as_float.dtype == np.float64 and np.abs(as_float - gray).max() < 0.5 and abs(as_float[0, 0, 0] - 219.93) < 0.01
    )


def test_grayscale_shapes():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    gray = to_grayscale(image)
    assert gray.shape == (1, 2, 3) and not np.shares_memory(gray, image)
    for shape in ((2, 3, 4), (2, 3, 1), (2,), (1, 2, 3, 3)):
        with pytest.raises(ValueError):
            to_grayscale(np.zeros(shape, np.uint8))


def test_pixelation_worked_example():
    """A 5 x 3 rectangle at (1, 1) in blocks of 2: the last column and row of blocks are cut off, means are floored."""
    image = np.arange(1, 31, dtype=np.uint8).reshape(1, 5, 6)
    pixelated, known, target = prepare_image(image, 1, 1, 5, 3, 2)
    assert target.tolist() == [[[8, 9, 10, 11, 12], [14, 15, 16, 17, 18], [20, 21, 22, 23, 24]]]
    # Means: (8 + 9 + 14 + 15) / 4 = 11.5, 13.5, (12 + 18) / 2 = 15; bottom row 20.5, 22.5, 24.
    assert pixelated[0].tolist() == [
        [1, 2, 3, 4, 5, 6],
        [7, 11, 11, 13, 13, 15],
        [13, 11, 11, 13, 13, 15],
        [19, 20, 20, 22, 22, 24],
        [25, 26, 27, 28, 29, 30],
    ]
    assert pixelated.dtype == np.uint8 and known.dtype == bool and known.shape == image.shape
    assert (~known).sum() == 15 and not known[0, 1:4, 1:].any()
    assert prepare_image(image.astype(np.float32), 1, 1, 5, 3, 2)[0][0, 1, 1] == 11.5
    assert image[0, 1, 1] == 8 and not np.shares_memory(target, image)


def test_pixelation_against_plain_loops():
    rng = np.random.default_rng(0)
    for _ in range(300):
        image = rng.integers(0, 256, (1, 64, 64), dtype=np.uint8)
        x, y, width, height, size = draw_rectangle(rng, 64, 64, *RANGES)
        expected = image.copy()
        for top, left in itertools.product(range(y, y + height, size), range(x, x + width, size)):
            block = 0, slice(top, min(top + size, y + height)), slice(left, min(left + size, x + width))
            expected[block] = int(np.mean(image[block]))
        pixelated, known, target = prepare_image(image, x, y, width, height, size)
        assert np.array_equal(pixelated, expected) and np.array_equal(image[~known], target.ravel())


@pytest.mark.parametrize(
    "shape, rectangle",
    [
        ((8, 8), (0, 0, 4, 4, 2)),
        ((3, 8, 8), (0, 0, 4, 4, 2)),
        ((1, 8, 8), (0, 0, 1, 4, 2)),
        ((1, 8, 8), (0, 0, 4, 1, 2)),
        ((1, 8, 8), (0, 0, 4, 4, 1)),
        ((1, 8, 8), (-1, 0, 4, 4, 2)),
        ((1, 8, 8), (5, 0, 4, 4, 2)),
        ((1, 8, 8), (0, 5, 4, 4, 2)),
    ],
)
def test_pixelation_errors(shape, rectangle):
    with pytest.raises(ValueError):
        prepare_image(np.zeros(shape, np.uint8), *rectangle)


def test_rectangles_have_the_test_sets_distribution():
    rng = np.random.default_rng(0)
    draws = np.array([draw_rectangle(rng, 64, 64, *RANGES) for _ in range(20000)])
    x, y, width, height, size = draws.T
    for values, low, high in ((width, 4, 32), (height, 4, 32), (size, 4, 16)):
        counts = np.bincount(values)[low:]
        assert values.min() == low and values.max() == high
        assert np.abs(counts / len(draws) * len(counts) - 1).max() < 0.2  # uniform
    assert ((x + width).max(), (y + height).max(), x.min(), y.min()) == (64, 64, 0, 0)
    narrow = width == 4
    assert x[narrow].max() == 60


def test_course_dataset_and_collate(tmp_path):
    save_photo(tmp_path / "b" / "1.jpg", 1, (100, 70))
    save_photo(tmp_path / "a.jpg", 2, (80, 90))
    save_photo(tmp_path / "c.png", 3)
    dataset = RandomImagePixelationDataset(str(tmp_path), *RANGES, dtype=np.uint8)
    assert len(dataset) == 2
    assert [sample[3] for sample in (dataset[0], dataset[1])] == sorted(str(tmp_path / f) for f in ("a.jpg", "b/1.jpg"))
    assert all(np.array_equal(a, b) for a, b in zip(dataset[0][:3], dataset[0][:3]))
    images, known, targets, files = next(iter(DataLoader(dataset, 2, collate_fn=stack_with_padding)))
    assert images.shape == known.shape == (2, 1, 90, 100) and images.dtype == torch.uint8 and known.dtype == torch.bool
    assert not images[0, :, :, 80:].any() and known[0, :, :, 80:].all() and known[1, :, 70:].all()
    assert np.array_equal(targets[1], dataset[1][2]) and files == dataset.image_files
    for wrong in ((1, 5), (6, 5)):
        for place in range(3):
            with pytest.raises(ValueError):
                RandomImagePixelationDataset(str(tmp_path), *[wrong if i == place else (4, 8) for i in range(3)])


# ------------------------------------------------------------------------------------------------ batches


def test_batches_are_the_same_for_any_number_of_workers_and_any_start(photos, tmp_path):
    cache = open_cache(str(photos), str(tmp_path), 0, 0)
    dataset = CachedPixelationDataset(cache, np.arange(10, 55), 5, (0.7, 1.0))

    def batches(workers, start, count=8):
        order = dataset.batches(16, start)
        loader = DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=workers)
        return list(itertools.islice(loader, count))

    reference = batches(0, 0)
    for workers, start in ((1, 0), (2, 0), (0, 4), (2, 5)):
        for a, b in zip(reference[start:], batches(workers, start)):
            assert all(map(torch.equal, a, b))
    assert sorted(len(images) for images, _, _ in reference[:3]) == [13, 16, 16]  # an epoch: every image once
    for pixelated_images, known_arrays, images in reference:
        assert torch.equal(pixelated_images[known_arrays], images[known_arrays]) and images.shape[1:] == (1, 64, 64)
        assert not torch.equal(pixelated_images, images)
    assert not torch.equal(reference[0][0], batches(0, 3, 1)[0][0])  # the next epoch has other rectangles
    other = CachedPixelationDataset(cache, np.arange(10, 55), 6, (0.7, 1.0))
    assert not np.array_equal(other[Key(0, 0, 8, 8)][0], dataset[Key(0, 0, 8, 8)][0])


def test_batches_of_rectangles_that_need_the_same_window():
    def side(extent):
        return -(-extent // 8)

    dataset = CachedPixelationDataset(None, range(3000), 5, (0.7, 1.0))
    plain, grouped = (list(itertools.islice(dataset.batches(16, 0, f), 2 * 188)) for f in (None, side))
    assert grouped[200:] == list(itertools.islice(dataset.batches(16, 200, side), 176))
    for batches in (plain, grouped):
        assert [sorted(i for batch in part for _, i, _, _ in batch) for part in (batches[:188], batches[188:])] == [
            list(range(3000))
        ] * 2
        first, second = ([key.index for batch in part for key in batch] for part in (batches[:188], batches[188:]))
        assert first != second  # each epoch has its own order
        keys = [key for batch in batches for key in batch]
        counts = np.stack([np.bincount([key[axis] for key in keys], minlength=33) for axis in (2, 3)])
        assert not counts[:, :4].any() and (np.abs(counts[:, 4:] - 6000 / 29) < 5 * (6000 / 29) ** 0.5).all()  # uniform
    kinds = [len({(side(width), side(height)) for _, _, width, height in batch}) for batch in grouped]
    assert max(kinds[:188]) <= 3 and np.mean([kind == 1 for kind in kinds]) > 0.85
    firsts = [batch[0][1:] for batch in grouped[:188]]
    assert [i for i, _, _ in firsts[:50]] != sorted(i for i, _, _ in firsts[:50])
    assert len({(side(w), side(h)) for _, w, h in firsts[:50]}) > 10  # small and large ones in random order


def test_validation_rectangles_are_fixed(photos, tmp_path):
    cache = open_cache(str(photos), str(tmp_path), 0, 0)
    a, b = (CachedPixelationDataset(cache, np.arange(30, 40), 0) for _ in range(2))
    for i in range(10):
        pixelated, known, target, name = a[i]
        assert np.array_equal(pixelated, b[i][0]) and name == cache.names[30 + i]
        assert np.array_equal(cache.thumbnails[30 + i][None][~known], target.ravel())


def test_samples_are_made_80_times_as_fast_as_they_are_trained_on(photos, tmp_path):
    """One process feeds the default network without workers: data takes under 1/80 of a core's training step."""
    cache = open_cache(str(photos), str(tmp_path), 0, 0)
    dataset = CachedPixelationDataset(cache, np.arange(60), 0, (0.7, 1.0))
    order, network = dataset.batches(60, 0), Depixelation(Depixelation.Config()).build_network("OddUNet", {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def data():
        for _ in range(5):
            collate([dataset[key] for key in next(order)])

    def step():
        inputs = torch.rand(8, 2, 64, 64)
        inputs[:, 1, 20:38, 20:38] = 0  # a rectangle of mean size
        network(inputs).mean().backward()

    def seconds(work, times):  # the least, in this thread's time: other programs may hold the core
        least = float("inf")
        for _ in range(times):
            start = time.thread_time()
            work()
            least = min(least, time.thread_time() - start)
        return least

    ratio = (seconds(step, 2) / 8) / (seconds(data, 10) / 300)
    torch.set_num_threads(threads)
    assert ratio > 80, ratio
