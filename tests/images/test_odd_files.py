"""Photos that others read: damaged text, cut ends, odd tags; what is kept of metadata; what is left out is named."""

import functools
import io
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import drawn_photo, save_photo
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

import datasets
import main as entry
from datasets import SRDataset
from depixelation.images.decoding import decode
from depixelation.images.photo_files import list_files, photo_jobs, read_photo
from depixelation.images.photo_files import save_photo as write_photo
from depixelation.images.photos import decode_chunk, decode_photo, list_photos
from utils import UserError

PIXELS = drawn_photo(120, 100)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\nshowpage\n"


def encoded(format, pixels=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# ------------------------------------------------------------------------------------------------ damage


def odd_pngs():
    plain = encoded("PNG")
    start, long = plain[:33], zlib.compress(bytes(3 * 2**20))
    yield "compressed text", start + chunk(b"zTXt", b"a\0\0" + long) + plain[33:]
    yield "compressed international text", start + chunk(b"iTXt", b"a\0\1\0\0\0" + long) + plain[33:]
    yield "text behind the pixels", plain[:-12] + chunk(b"zTXt", b"a\0\0" + long) + plain[-12:]
    yield "wrong checksum", start + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + plain[33:]
    yield "wrong checksum of the resolution", start + chunk(b"pHYs", bytes(9))[:-1] + b"?" + plain[33:]
    yield "unknown compression", start + chunk(b"zTXt", b"a\0\7b") + plain[33:]
    yield "short gamma", start + chunk(b"gAMA", b"\0") + plain[33:]
    yield "without an end", plain[:-12]


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in odd_pngs()])
def test_what_lies_beside_the_pixels_spoils_none(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(read_photo(tmp_path / "a.png")[0], PIXELS)
    assert np.array_equal(decode_photo(data, colour=True)[0], PIXELS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}])
def test_jpegs_without_their_end(tmp_path, options, capsys):
    whole = encoded("JPEG", drawn_photo(120, 400), quality=90, **options)
    expected = np.asarray(Image.open(io.BytesIO(whole)))
    for missing in (1, 2):
        (tmp_path / "a.jpg").write_bytes(whole[:-missing])
        assert np.array_equal(read_photo(tmp_path / "a.jpg")[0], expected)
        assert np.array_equal(decode_photo(whole[:-missing], colour=True)[0], expected)
    assert not capsys.readouterr().err
    last_scan = whole.rindex(b"\xff\xda")
    for length in (len(whole) // 2, last_scan):  # of a progressive one all rows are there before, but not sharp
        with pytest.raises((ValueError, OSError)):
            decode_photo(whole[:length])


def stripped_tiff(pixels, rows=20):
    """A compressed TIFF that begins with its directory, as some programs write them."""
    strips = [zlib.compress(pixels[y : y + rows].tobytes()) for y in range(0, len(pixels), rows)]
    count, sizes = len(strips), [len(strip) for strip in strips]
    start, first = 8 + 2 + 9 * 12 + 4, 8 + 2 + 9 * 12 + 4 + 6 + 8 * len(strips)
    tags = [(256, 1, pixels.shape[1]), (257, 1, len(pixels)), (258, 3, start), (259, 1, 8), (262, 1, 2)]
    tags += [(273, count, start + 6), (277, 1, 3), (278, 1, rows), (279, count, start + 6 + 4 * count)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if n == count else 3, n, value) for tag, n, value in tags)
    places = [first + sum(sizes[:i]) for i in range(count)]
    numbers = struct.pack(f"<3H{2 * count}I", 8, 8, 8, *places, *sizes)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + numbers + b"".join(strips)


@functools.cache
def tall_photo():
    return np.concatenate([drawn_photo(120, 400, seed) for seed in (0, 3, 6)])


CUT = ["JPEG", "PNG", "BMP", "TIFF", "compressed TIFF", "PPM", "WEBP", "lossless WEBP", "GIF", "TGA"]


@pytest.mark.parametrize("kind", CUT)
def test_a_cut_tail_is_used_and_told_where_nearly_all_is_there(tmp_path, kind, capsys):
    tall = tall_photo()
    options = {"lossless": True} if kind == "lossless WEBP" else {}
    data = stripped_tiff(tall) if kind == "compressed TIFF" else encoded(kind.split()[-1], tall, **options)
    length = next(n for n in range(len(data), 0, -len(data) // 400) if share(data[:n]) < 0.985)
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:length])
    pixels, expected = read_photo(path)[0], np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    same = (pixels == expected).all(axis=(1, 2))
    if kind not in ("BMP", "TGA"):  # which begin with the last row
        assert same[:1140].all()
    assert 0.95 <= same.mean() < 1 and "% of the rows can be read" in capsys.readouterr().err
    assert np.ptp(pixels[~same].reshape(-1, 3), axis=0).max() == 0  # one grey
    (result,) = decode_chunk(str(tmp_path), ["a.jpg"], True)
    if kind != "GIF":  # of which none is trained on
        assert np.array_equal(result[0], pixels) and "a.jpg: only 9" in capsys.readouterr().out
    path.write_bytes(data[: int(len(data) * 0.9)])
    with pytest.raises(UserError, match="of its rows can be read"):
        read_photo(path)
    assert decode_chunk(str(tmp_path), ["a.jpg"]) == ["unreadable"]
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000", "TIFF", "WEBP"])
def test_a_cut_tail_without_which_nothing_is_decoded_is_named(tmp_path, format):
    data = encoded(format, **({"compression": "tiff_lzw"} if format == "TIFF" else {}))
    (tmp_path / "a.jpg").write_bytes(data[: 20 if format == "WEBP" else int(len(data) * 0.97)])
    with pytest.raises(UserError, match="a.jpg: .*its end is missing"):
        read_photo(tmp_path / "a.jpg")


def share(data):
    return decode(io.BytesIO(data)).share


def test_pixels_that_are_damaged_are_not_used():
    """Pillow would leave the last rows alone of a PNG whose pixels are wrong before."""
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 16
    with pytest.raises(OSError):
        decode(io.BytesIO(bytes(data)))


# ------------------------------------------------------------------------------------------------ PostScript


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_postscript_starts_no_program(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **more: pytest.fail("was started"))
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match=f"{name}: not a readable picture"):
        read_photo(tmp_path / name)
    assert decode_chunk(str(tmp_path), [name]) == ["unreadable"]
    with pytest.raises(OSError):
        SRDataset(tmp_path)[0]
    if name == "a.jpg":
        with pytest.raises(OSError):
            datasets.RandomImagePixelationDataset(tmp_path, (4, 9), (4, 9), (4, 9))[0]


# ------------------------------------------------------------------------------------------------ what values mean


def sixteen_bits(values, white_is_zero, bits=16):
    """A TIFF of 16-bit greys, as scanners write them."""
    data = values.astype("<u2").tobytes()
    tags = [(256, 3, values.shape[1]), (257, 3, values.shape[0]), (258, 3, bits), (259, 3, 1)]
    tags += [(262, 3, 0 if white_is_zero else 1), (273, 4, 122), (277, 3, 1), (278, 3, values.shape[0])]
    tags += [(279, 4, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_scans_whose_white_is_zero(tmp_path, white_is_zero):
    grey = PIXELS[:, :, 0] // 2
    values, grey = grey.astype(np.uint16) * 257 + 200, grey + 1  # nearer to the next level
    data = sixteen_bits(65535 - values if white_is_zero else values, white_is_zero)
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(read_photo(tmp_path / "a.tif")[0][:, :, 0], grey)
    assert np.array_equal(decode_photo(data)[0], grey)
    high = SRDataset(tmp_path, 64, jitter=0)[0][1].numpy() * 255
    assert high.max() <= grey.max() <= 128


def test_colours_of_more_bits_are_told(tmp_path, capsys):
    rows = b"".join(b"\0" + bytes(6 * 8) for _ in range(8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    for name, data, told in (
        ("deep.png", png, True),
        ("plain.png", encoded("PNG"), False),
        ("plain.tif", encoded("TIFF"), False),
        ("plain.jp2", encoded("JPEG2000"), False),
        ("deep.ppm", b"P6 2 2 65535\n" + bytes(24), True),
        ("deep.jp2", encoded("JPEG2000", PIXELS[:, :, 0].astype(np.uint16) * 257), True),
    ):
        (tmp_path / name).write_bytes(data)
        read_photo(tmp_path / name)
        assert (f"{name}: has 16 bits a channel" in capsys.readouterr().err) == told, name


# ------------------------------------------------------------------------------------------------ metadata


def rich_photo(path, **options):
    """A photo turned by EXIF, with a thumbnail, an author, XMP and a resolution."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Artist] = 6, "Ada"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.LensModel: "50 mm", ExifTags.Base.MakerNote: b"a small photo"}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6">Ada</x:xmpmeta>'
    if path.suffix == ".tif":
        exif[700] = xmp
    Image.fromarray(PIXELS).save(path, exif=exif.tobytes(), xmp=xmp, dpi=(240, 240), **options)


@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.webp"])
def test_exif_xmp_and_resolution_stay(tmp_path, name, quality):
    rich_photo(tmp_path / name)
    pixels, alpha, metadata = read_photo(tmp_path / name)
    assert pixels.shape[:2] == (120, 100)
    write_photo(pixels, alpha, metadata, tmp_path / "out", quality)
    for _ in range(2):  # what was written is read
        with Image.open(tmp_path / "out") as image:
            exif = image.getexif()
            assert exif[ExifTags.Base.Artist] == "Ada" and ExifTags.Base.Orientation not in exif
            assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] == "50 mm"
            assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
            if name != "a.webp":
                assert image.info["dpi"] == pytest.approx((240, 240), abs=0.02)
            xmp = image.info["xmp"]
            assert b"Ada" in xmp and b"Orientation" not in xmp
        assert b"a small photo" not in (tmp_path / "out").read_bytes()
        write_photo(*read_photo(tmp_path / "out"), tmp_path / "out", quality)


def test_a_small_photo_in_xmp_does_not_stay(tmp_path):
    """It would show what is pixelated now."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><xmp:Thumbnails>a photo</xmp:Thumbnails></x:xmpmeta>'
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", xmp=xmp)
    assert b"Thumbnails" in Image.open(tmp_path / "a.jpg").info["xmp"]
    assert "xmp" not in read_photo(tmp_path / "a.jpg")[2]


def test_a_pngs_gamma_stays(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    info.add(b"cHRM", struct.pack(">8I", *range(30000, 30008)))
    Image.fromarray(PIXELS).save(tmp_path / "a.png", pnginfo=info)
    assert entry.main(["--pixelate", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a_pixelated.png") as image:
        assert image.info["gamma"] == 1 and image.info["chromaticity"][0] == 0.3


def test_what_is_written_is_read_also_with_a_large_profile(tmp_path, capsys):
    profile = np.random.default_rng(0).bytes(5 * 2**20)
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", icc_profile=profile)
    for name in ("a.jpg", "a_pixelated.png"):
        assert entry.main(["--pixelate", str(tmp_path / name)]) == 0
    for _ in range(2):
        pixels, _, metadata = read_photo(tmp_path / "a_pixelated_pixelated.png")
        assert metadata["icc_profile"] == profile and pixels.shape == PIXELS.shape
        assert entry.main(["--pixelate", str(tmp_path / "a_pixelated.png")]) == 0  # it is known as ours
    assert "error" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ folders


def test_folders_hold_every_kind_that_pillow_reads_and_links(tmp_path, capsys):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    names = ["a.jfif", "b.avif", "c.jp2", "d.webp", "e.bmp", "f.tiff", "i.j2k", "j.ppm", "k.tga", "l.qoi", "sub/g.JPG"]
    for name in names:
        Image.fromarray(PIXELS).save(folder / name)
    for name in ("x.heic", "y.CR2", "notes.txt"):
        (folder / name).write_bytes(b"?")
    save_photo(elsewhere / "h.png", 1)
    os.symlink(elsewhere, folder / "linked")
    os.symlink(folder, folder / "sub" / "loop")
    os.symlink(tmp_path, folder / "sub" / "up")
    os.symlink(folder / "sub", folder / "again")
    expected = sorted([*names, "linked/h.png"])
    assert sorted(name for _, name in list_files([str(folder)])) == expected
    told = capsys.readouterr().err
    assert "left out 2" in told and "x.heic, y.CR2" in told and "notes" not in told
    assert [name for name, _ in list_photos(str(folder))] == expected
    assert "left out 2" in capsys.readouterr().out
    results = decode_chunk(str(folder), expected)
    assert not [result for result in results if isinstance(result, str)]
    assert len(list_files([str(folder), str(folder / "a.jfif")])) == len(expected)  # one that is named twice is one


# ------------------------------------------------------------------------------------------------ results


def test_a_photo_that_cannot_be_written_stops_no_other(tmp_path, monkeypatch, capsys):
    """A user's own file in the place of a result; a folder there; and results of before among those that are named."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c.png", "a_pixelated.png"):
        save_photo(tmp_path / name, 1)
    os.mkdir("b_pixelated.png")
    before = (tmp_path / "a_pixelated.png").read_bytes()
    assert entry.main(["--pixelate", "a.png", "b.png", "gone.png", "c.png"]) == 1
    errors = capsys.readouterr().err
    assert errors.count("error:") == 3 and "a_pixelated.png: is not replaced" in errors
    assert "b_pixelated.png: is a folder" in errors and "gone.png: No such file" in errors
    assert (tmp_path / "c_pixelated.png").exists() and (tmp_path / "a_pixelated.png").read_bytes() == before
    assert entry.main(["--pixelate", "c.png", "c_pixelated.png"]) == 0
    assert "c_pixelated.png: left out, as it is the result of another photo" in capsys.readouterr().err
    assert not (tmp_path / "c_pixelated_pixelated.png").exists()
    assert entry.main(["--pixelate", "c_pixelated.png"]) == 0  # alone, it is meant
    assert (tmp_path / "c_pixelated_pixelated.png").exists()


def test_two_folders_photos_of_one_name_in_one_output(tmp_path):
    paths = [tmp_path / name / "a.png" for name in ("x", "y")]
    for path in paths:
        save_photo(path, 1)
    (_, first, none), (_, second, problem) = photo_jobs(list(map(str, paths)), ["_x2.png"], str(tmp_path / "out"))
    assert first == second and none is None and "two files would be written" in problem


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_stops_no_other(tmp_path):
    save_photo(tmp_path / "x" / "a.png", 1)
    save_photo(tmp_path / "y" / "a.png", 1)
    os.chmod(tmp_path / "x", 0o500)
    jobs = photo_jobs([str(tmp_path)], ["_x2.png"])
    os.chmod(tmp_path / "x", 0o700)
    assert "no folder to write in" in jobs[0][2] and jobs[1][2] is None
