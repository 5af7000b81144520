"""Photos as training sees them: listed in a folder or zip, decoded to small arrays; or drawn by the program."""

import errno
import functools
import io
import os
import stat
import warnings
import zipfile

import numpy as np
from PIL import Image

from datasets import EXTENSIONS, IMAGE_SIZE, to_8_bits, to_grayscale, upright
from depixelation.images import synthetic
from depixelation.images.decoding import MAX_FILE_BYTES, decode
from utils import UserError, display_path

CACHE_SIDE = 128  # shortest side of a cached photo: as the course's photos, twice the challenge's images
SYNTHETIC_SIDE = 96
COLOUR_SIDE = 2048  # longest side of a photo cached in colour; of larger ones the middle is kept
SYNTHETIC_COLOUR_SIDE = 128
UNREAD = ".gif .heic .heif .hif .avifs .jxl .jxr .psd .xcf .exr .hdr .pcx .sgi .dng .cr2 .cr3 .nef .nrw .arw .sr2 .orf "
UNREAD = tuple((UNREAD + ".rw2 .raf .pef .srw .x3f .3fr").split())  # of photos that are not read, but named
# Errors that a retry will not fix. Others, of a disk or a network share, may be gone next time.
LASTING = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)


def list_photos(images):
    """The photos of a folder or zip file: a sorted list of (name, stamp), name with forward slashes, relative.

    stamp changes when the file does: size and modification time, or size and checksum in a zip. Hidden files are
    skipped (among them the resource forks that macOS adds to zips). Raises UserError where there is nothing to read.
    """
    if os.path.isdir(images):
        paths = {os.path.relpath(path, images).replace(os.sep, "/"): path for path in walk_files(images, _tell_folder)}
        photos = [(name, _stamp(path)) for name, path in paths.items() if _is_photo(name)]
        names = list(paths)
    elif os.path.isfile(images):
        try:
            with zipfile.ZipFile(images) as file:
                entries = file.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"images: {images} cannot be read as a zip file ({error}); give a folder or a .zip"
            ) from None
        photos = [(entry.filename, f"{entry.file_size} {entry.CRC}") for entry in entries if _is_photo(entry.filename)]
        names = [entry.filename for entry in entries]
    else:
        raise UserError(f'images: there is no folder or file {images}; give one that exists, or "synthetic"')
    unread = [name for name in names if _is_photo(name, UNREAD)]
    if unread:
        print(f"{display_path(images)}: {left_out(unread)}")
    if not photos:
        raise UserError(f"images: no photos in {images} (looked for {', '.join(EXTENSIONS)}, also in subfolders)")
    return sorted(photos)


def left_out(names):
    """What to tell the user of photos that are not read."""
    listed = ", ".join(sorted(names)[:10]) + (", ..." if len(names) > 10 else "")
    listed = listed.encode(errors="backslashreplace").decode()  # names need not be valid Unicode
    return f"left out {len(names)} of kinds that are not read ({listed}); save them as JPEG or PNG"


def walk_files(top, on_error):
    """The paths of all files in a folder and its subfolders, linked ones too, each once; hidden ones are skipped.

    on_error: called with the OSError of a folder that cannot be read.
    """
    waiting, seen, above = [top], set(), os.path.realpath(top) + os.sep
    while waiting:
        for folder, subfolders, files in os.walk(waiting.pop(0), onerror=on_error):
            real = os.path.realpath(folder)
            if real in seen or above.startswith(os.path.join(real, "")) and folder != top:  # a link up, or again
                subfolders[:] = []
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            waiting += [path for path in (os.path.join(folder, name) for name in subfolders) if os.path.islink(path)]
            yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))


def _tell_folder(error):
    if error.errno not in LASTING:
        raise error
    print(f"Left out the folder {display_path(error.filename)}: {error.strerror}")


def _stamp(path):
    try:
        found = os.stat(path)
    except OSError:  # a link to nowhere: it will be left out as unreadable
        return "missing"
    if not stat.S_ISREG(found.st_mode):
        return "no file"
    return f"{found.st_size} {found.st_mtime_ns}" + ("" if os.access(path, os.R_OK) else " unreadable")


def _is_photo(name, extensions=EXTENSIONS):
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(extensions) and not base.startswith(".") and not name.startswith("__MACOSX/")


@functools.cache  # reading the directory of a large zip takes a while, so a worker process does it once
def _open_zip(path):
    return zipfile.ZipFile(path)


def _read_photo(images, name):
    """The bytes of one photo."""
    path = os.path.join(images, name)
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, without end
        raise ValueError("no plain file")
    opened = open(path, "rb") if os.path.isdir(images) else _open_zip(images).open(name)
    with opened as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def decode_photo(data, colour=False, name=None):
    """The two arrays that the cache keeps of a photo, uint8: the photo, grayscale or in colour, and a thumbnail.

    data: bytes of a file of any kind but GIF, whose few colours leave patterns. name: under which the user is told what
    is missing of it. Returns the photo, (h, w), its shortest side at most CACHE_SIDE, its longest cropped to twice
    that; or in colour (h, w, 1 or 3), only cropped, to COLOUR_SIDE; and its thumbnail in the challenge's own form,
    (64, 64): Resize(64, bilinear), CenterCrop(64), grayscale (nearly so for JPEGs over 1000 pixels a side, which for
    grayscale are decoded at a fraction of their size).
    Raises ValueError where a side is shorter than 64; Pillow raises where it cannot decode.
    """

    def prepare(image):
        if min(image.size) < IMAGE_SIZE:
            raise ValueError(f"smaller than {IMAGE_SIZE} pixels")
        if image.format == "GIF":
            raise SyntaxError("a GIF")
        if not colour:
            image.draft(None, (4 * CACHE_SIDE, 4 * CACHE_SIDE))  # large JPEGs: decode at a fraction of their size

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decoded = decode(io.BytesIO(data), prepare)
        image = _without_mode(upright(decoded.image))
    if name and decoded.damage():
        print(f"{name}: {decoded.damage()}", flush=True)
    thumbnail = _grayscale(_resize(image, IMAGE_SIZE, IMAGE_SIZE))
    if colour:
        return np.atleast_3d(_crop(image, COLOUR_SIDE)), thumbnail
    return _grayscale(_resize(image, CACHE_SIDE, 2 * CACHE_SIDE)), thumbnail


def _without_mode(image):
    """Any Pillow mode to "RGB" or "L"; transparent parts become white."""
    if image.mode == "F" or image.mode == "I" and image.format == "TIFF":
        raise ValueError("without greys of 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray(to_8_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _resize(image, side, longest):
    """Shortest side to `side` unless it is shorter already, longest cropped to `longest`, as torchvision does it."""
    shortest = min(image.size)
    width, height = (int(length * side / shortest) if shortest > side else length for length in image.size)
    return _crop(image.resize((width, height), Image.Resampling.BILINEAR), longest)


def _crop(image, longest):
    left, top = (int(round(max(0, length - longest) / 2)) for length in image.size)
    return image.crop((left, top, min(left + longest, image.width), min(top + longest, image.height)))


def _grayscale(image):
    return to_grayscale(np.array(image))[0]


def decode_chunk(images, names, colour=False):
    """[(photo, thumbnail), or the reason why the photo is left out] of one worker.

    Raises UserError where a photo may be readable another time: the cache would remember that it is not.
    """
    results = []
    for name in names:
        try:
            results.append(decode_photo(_read_photo(images, name), colour, name))
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken file makes a decoder raise, it costs this one photo
            if isinstance(error, OSError) and error.errno and not _lasts(error, os.path.join(images, name)):
                advice = "start again when all of it can be read"
                raise UserError(f"images: {name} in {display_path(images)}: {error.strerror}; {advice}") from None
            results.append(str(error) if type(error) is ValueError else "unreadable")
    return results


def _lasts(error, path):
    return error.errno in LASTING or (error.errno == errno.ENOENT and os.path.islink(path))  # a link to nowhere


def draw_chunk(seed, indices, colour=False):
    """[(image, thumbnail)] of the synthetic source, as decode_chunk gives them for photos."""
    draw, side = (
        (synthetic.synthetic_colour_image, SYNTHETIC_COLOUR_SIDE)
        if colour
        else (synthetic.synthetic_image, SYNTHETIC_SIDE)
    )
    images = [draw(seed, index, side) for index in indices]
    return [(image, _grayscale(_resize(Image.fromarray(image), IMAGE_SIZE, IMAGE_SIZE))) for image in images]
