"""The course's functions against its facts; reading photos; the cache; the split; batches."""

import io
import itertools
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import save_photo
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

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
from synthetic import synthetic_image
from tasks import images as sources
from tasks.depixelation import Depixelation
from tasks.images import _decode_chunk, _open_zip, decode_photo, list_photos, open_cache, split_by_folder
from utils import UserError, digest

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


# ------------------------------------------------------------------------------------------------ reading photos


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_thumbnail_is_the_courses_transform():
    course = transforms.Compose(
        [transforms.Resize(64, transforms.InterpolationMode.BILINEAR), transforms.CenterCrop(64)]
    )
    rng = np.random.default_rng(0)
    for size in ((64, 64), (128, 171), (200, 130), (333, 97), (65, 64), (98, 196)):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        photo, thumbnail = decode_photo(encode(image))
        assert np.array_equal(thumbnail, to_grayscale(np.array(course(image)))[0])
        assert min(photo.shape) == min(128, *size) and max(photo.shape) <= 256


def test_unusual_modes():
    rgb = Image.fromarray(np.stack([synthetic_image(0, i, 100) for i in range(3)], axis=2))
    expected = decode_photo(encode(rgb))[1].astype(int)
    opaque, transparent = rgb.copy(), rgb.convert("RGBA")
    opaque.putalpha(255)
    transparent.putalpha(0)
    assert np.array_equal(decode_photo(encode(opaque))[1], expected)
    assert (decode_photo(encode(transparent))[1] == 255).all()  # on white
    assert np.abs(decode_photo(encode(rgb.quantize(256)))[1] - expected).mean() < 4
    assert np.abs(decode_photo(encode(rgb.convert("CMYK"), "JPEG", quality=95))[1] - expected).mean() < 4
    gray = rgb.convert("L")
    expected = decode_photo(encode(gray))[1].astype(int)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert np.abs(decode_photo(encode(deep))[1] - expected).max() <= 1
    assert decode_photo(encode(gray.convert("1")))[1].dtype == np.uint8
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    turned = decode_photo(encode(gray, exif=exif))[1]
    assert np.abs(turned - np.rot90(expected, -1)).max() <= 1


def test_photos_that_cannot_be_used(tmp_path, capsys):
    save_photo(tmp_path / "x" / "good.JPG", 0)
    save_photo(tmp_path / "x" / "good.PnG", 1)
    save_photo(tmp_path / "small.jpg", 2, (63, 100))
    whole = (tmp_path / "x" / "good.JPG").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpeg").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("not even called one")
    Image.new("RGB", (100, 100)).save(tmp_path / "gif.jpg", "GIF")
    cache = open_cache(str(tmp_path), str(tmp_path / "cache"), 0, 0)
    assert cache.names == ["x/good.JPG", "x/good.PnG"]
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "Left out 5 of 7" in line and "4 unreadable (cut.jpg" in line
    assert "1 smaller than 64 pixels (small.jpg)" in line


def test_sources_without_photos(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"x")
    (tmp_path / "no.zip").write_bytes(b"x")
    for images, message in (
        ("empty", "no photos in"),
        ("missing", "there is no folder or file"),
        ("no.zip", "as a zip file"),
        ("bad", "none of the 1 photos"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_cache(str(tmp_path / images), str(tmp_path / "cache"), 0, 0)
        assert images in str(error.value)
    assert not [name for name in os.listdir(tmp_path / "cache") if "building" in name]


def test_damaged_zips(photos, tmp_path):
    """A flipped bit in the directory of a zip: one clear line, or photos that are left out and named."""
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as file:
        for path in sorted(photos.rglob("*.jpg"))[:3]:
            file.write(path, path.name)
    good = (tmp_path / "good.zip").read_bytes()
    directory, rng, refused = good.index(b"PK\x01\x02"), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(good)
        damaged[rng.integers(directory, len(good))] ^= 1 << rng.integers(8)
        (tmp_path / "damaged.zip").write_bytes(damaged)
        try:
            photos_of_it = list_photos(str(tmp_path / "damaged.zip"))
        except UserError as error:
            refused += 1
            assert "damaged.zip" in str(error)
            continue
        _open_zip.cache_clear()
        results = _decode_chunk(str(tmp_path / "damaged.zip"), [name for name, _ in photos_of_it])
        assert all(isinstance(result, (str, tuple)) for result in results) and len(results) == len(photos_of_it)
    assert refused > 30


# ------------------------------------------------------------------------------------------------ the cache


def test_zip_equals_folder(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in sorted(photos.rglob("*.jpg")):
            file.write(path, f"training/{path.relative_to(photos)}")
        file.writestr("__MACOSX/training/000/._0000000.jpg", b"a resource fork")
    a = open_cache(str(photos), str(tmp_path), 0, 0)
    b = open_cache(str(tmp_path / "photos.zip"), str(tmp_path), 0, 0)
    assert ["training/" + name for name in a.names] == b.names and len(a) == 60 and not b.left_out
    assert np.array_equal(a.thumbnails, b.thumbnails) and all(np.array_equal(a[i], b[i]) for i in range(60))


def test_cache_notices_every_change(tmp_path, monkeypatch):
    folder, cache_dir = tmp_path / "photos", tmp_path / "cache"
    for i in range(4):
        save_photo(folder / f"{i}.jpg", i)
    built = []
    build = sources._build_cache
    monkeypatch.setattr(
        sources, "_build_cache", lambda *arguments, **named: (built.append(1), build(*arguments, **named))
    )

    def changed():
        built.clear()
        names = open_cache(str(folder), str(cache_dir), 0, 0).names
        assert names == sorted(path.name for path in folder.iterdir())
        assert len(os.listdir(cache_dir)) == 1  # the stale one is gone
        return bool(built)

    assert changed() and not changed()
    save_photo(folder / "4.jpg", 4)
    assert changed() and not changed()
    (folder / "0.jpg").unlink()
    assert changed() and not changed()
    save_photo(folder / "1.jpg", 9)
    assert changed() and not changed()
    monkeypatch.setattr(sources, "CACHE_SIDE", 96)
    assert changed() and not changed()


@pytest.mark.parametrize("name", ["pixels.bin", "thumbnails.bin", "index.json"])
def test_a_damaged_cache_is_made_again(tmp_path, capsys, name):
    path = open_cache("synthetic", str(tmp_path), 3, 40).path
    good = {file: (tmp_path / path / file).read_bytes() for file in os.listdir(path)}
    for damaged in (good[name][: len(good[name]) // 2], b"", None):
        (tmp_path / path / name).unlink()
        if damaged is not None:
            (tmp_path / path / name).write_bytes(damaged)
        capsys.readouterr()
        assert np.array_equal(open_cache("synthetic", str(tmp_path), 3, 40)[39], synthetic_image(3, 39))
        line = capsys.readouterr().out
        assert line.count("\n") == 1 and path in line and "is made again" in line
        assert {file: (tmp_path / path / file).read_bytes() for file in os.listdir(path)} == good
    open_cache("synthetic", str(tmp_path), 3, 40)
    assert not capsys.readouterr().out and len(os.listdir(tmp_path)) == 1


def test_only_abandoned_caches_are_removed(photos, tmp_path):
    place = os.path.basename(open_cache(str(photos), str(tmp_path), 0, 0).path)
    shutil.rmtree(tmp_path / place)
    here = digest(platform.node())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = [f"{place}.building.{here}.{dead.pid}", f"{place}.building.0.{os.getppid()}", f"{place}.building.9"]
    alive = [f"{place}.building.{here}.{os.getppid()}", f"{place}.building.0.{dead.pid}", f"other.building.{here}.1"]
    for name in old + alive:
        (tmp_path / name).mkdir()
    for name in old[1:]:
        os.utime(tmp_path / name, (0, 0))
    open_cache(str(photos), str(tmp_path), 0, 0)
    assert set(os.listdir(tmp_path)) == {place, *alive}


def test_synthetic_images_are_functions_of_seed_and_index(tmp_path):
    cache = open_cache("synthetic", str(tmp_path), 3, 70)
    for i in (69, 0, 33):  # in another order and process than the cache drew them
        assert np.array_equal(cache[i], synthetic_image(3, i))
    assert not np.array_equal(synthetic_image(3, 0), synthetic_image(4, 0))
    assert cache.thumbnails.shape == (70, 64, 64) and np.std(cache.thumbnails, axis=(1, 2)).min() > 1


# ------------------------------------------------------------------------------------------------ split and batches


@pytest.mark.parametrize(
    "names",
    [
        [f"training/{i // 100:03}/{i:07}.jpg" for i in range(3000)],
        [f"{i // 7}/{i}.jpg" for i in range(100)],
        [f"{'abc'[i % 3]}/{i // 3:03}.jpg" for i in range(90)],
        [f"{i:03}.jpg" for i in range(200)],
        ["a.jpg", "b.jpg"],
    ],
)
def test_split_is_complete_and_does_not_leak(names):
    names = sorted(names)
    train, validation = split_by_folder(names, 0.1)
    assert sorted([*train, *validation]) == list(range(len(names))) and len(train) and len(validation)
    folders = {name.rpartition("/")[0] for name in names}
    if len(folders) > 3:
        assert not {names[i].rpartition("/")[0] for i in train} & {names[i].rpartition("/")[0] for i in validation}
    elif len(names) > 2:  # in runs: few training photos have a neighbour that is held out
        assert np.count_nonzero(np.diff(np.isin(np.arange(len(names)), validation))) <= 2 * 12
    assert len(validation) <= 0.2 * len(names) + 1


def test_each_17th_folder_of_the_course_is_held_out():
    """What all published scores are measured on."""
    names = [f"training/{i // 100:03}/{i:07}.jpg" for i in range(28000)]
    held_out = {int(names[i].split("/")[1]) for i in split_by_folder(names, 0.06)[1]}
    assert held_out == set(range(0, 280, 17))


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
    order, network = dataset.batches(60, 0), Depixelation(Depixelation.Config()).build_parts()["network"]
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
