"""The cache of decoded photos: what it notices, and what happens where it is damaged or abandoned."""

import os
import shutil
import zipfile

import numpy as np
import pytest
from conftest import save_photo

from depixelation.images import cache as caches
from depixelation.images.cache import open_cache
from depixelation.images.synthetic import synthetic_image


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
    build = caches._build_cache
    monkeypatch.setattr(
        caches, "_build_cache", lambda *arguments, **named: (built.append(1), build(*arguments, **named))
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
    monkeypatch.setattr(caches, "CACHE_SIDE", 96)
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


def test_only_abandoned_caches_of_the_same_source_are_removed(photos, tmp_path):
    place = os.path.basename(open_cache(str(photos), str(tmp_path), 0, 0).path)
    shutil.rmtree(tmp_path / place)
    for name in (f"{place}.building.9", f"{place[:-3]}abc.building.{os.getppid()}", "other.building.9", "mine"):
        (tmp_path / name).mkdir()
    open_cache(str(photos), str(tmp_path), 0, 0)
    assert set(os.listdir(tmp_path)) == {place, "other.building.9", "mine"}


def test_synthetic_images_are_functions_of_seed_and_index(tmp_path):
    cache = open_cache("synthetic", str(tmp_path), 3, 70)
    for i in (69, 0, 33):  # in another order and process than the cache drew them
        assert np.array_equal(cache[i], synthetic_image(3, i))
    assert not np.array_equal(synthetic_image(3, 0), synthetic_image(4, 0))
    assert cache.thumbnails.shape == (70, 64, 64) and np.std(cache.thumbnails, axis=(1, 2)).min() > 1
