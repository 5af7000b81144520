"""Photos as training sees them: formats, damage, and what is left out."""

import io
import os
import zipfile

import numpy as np
import pytest
from conftest import save_photo
from PIL import Image
from torchvision import transforms

from datasets import to_grayscale
from depixelation.images.cache import open_cache
from depixelation.images.photos import _open_zip, decode_chunk, decode_photo, list_photos
from depixelation.images.synthetic import synthetic_image
from utils import UserError


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
        results = decode_chunk(str(tmp_path / "damaged.zip"), [name for name, _ in photos_of_it])
        assert all(isinstance(result, (str, tuple)) for result in results) and len(results) == len(photos_of_it)
    assert refused > 30
