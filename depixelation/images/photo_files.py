"""Lists and reads the user's photos, of any size and colour, and writes results beside them or to another folder."""

import contextlib
import os
import re
import sys
import warnings
from collections import Counter

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets import EXTENSIONS, to_8_bits, upright
from depixelation.engine.outputs import check_outputs, written_by_us
from depixelation.images.decoding import decode
from depixelation.images.metadata import COLOURS, metadata_of, save_options
from depixelation.images.photos import UNREAD, left_out, walk_files
from utils import UserError, atomic_write, display_path, open_plain

ROWS = 256  # of a picture, copied at once
LARGE = 2**26  # values; a PNG with more is compressed less, as compression would take most of the time
# The names of results, which are not photos to restore.
RESULT = re.compile(r"(?P<base>.+)_(depixelated|before_after|preview|mask|spread|sample_\d+)\.png$")


def read_photo(path):
    """Read a photo: (pixels, (H, W, C) uint8, C 1 or 3, upright; alpha, (H, W) uint8 or None; its metadata, a dict).

    Raises UserError.
    """
    path = os.fspath(path)
    shown = display_path(path)
    try:
        with open_plain(path) as file, warnings.catch_warnings(action="ignore"):  # about damaged tags
            decoded = decode(file)
            image = upright(decoded.image)
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise UserError(f"{shown}: has several frames or pages; name a picture of one")
            if image.mode == "F" or image.mode == "I" and image.format == "TIFF":
                raise UserError(f"{shown}: its greys have neither 8 nor 16 bits, so black is unknown; save it with 8")
            metadata, alpha = metadata_of(image, file), None
            if image.mode not in ("RGB", "RGBA", "P", "L"):
                metadata.pop("icc_profile", None)  # it describes values that conversion changes
            if image.has_transparency_data and not image.mode.startswith("I"):
                if image.mode == "L":
                    metadata.pop("icc_profile", None)  # it describes greys, which become colours
                image = image.convert("RGBA")
                alpha = np.asarray(image.getchannel("A"))
            if decoded.bits > 8:
                _tell(f"{shown}: has {decoded.bits} bits a channel; results have 8")
            if decoded.damage():
                _tell(f"{shown}: {decoded.damage()}")
            if image.mode.startswith("I"):
                pixels = to_8_bits(image)
            else:
                mode = "L" if image.mode in ("1", "L") else "RGB"
                pixels = _as_array(image if image.mode == mode else image.convert(mode))
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"{shown}: has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels; make it smaller"
        ) from None
    except OSError as error:
        raise UserError(f"{shown}: {error.strerror or 'not a readable picture'}; name a photo") from None
    except Exception as error:  # a broken file makes decoders raise anything
        raise UserError(f"{shown}: not a readable picture ({error})") from None
    return pixels.reshape(*pixels.shape[:2], -1), alpha, metadata


def _as_array(image):
    """An image of mode L or RGB as (H, W) or (H, W, 3) uint8, with less memory than Pillow takes for it at once."""
    pixels = np.empty((image.height, image.width, *[3] * (image.mode == "RGB")), dtype=np.uint8)
    for y in range(0, image.height, ROWS):
        pixels[y : y + ROWS] = image.crop((0, y, image.width, min(y + ROWS, image.height)))
    return pixels


def _tell(line):
    tqdm.write(line, file=sys.stderr)


def save_photo(pixels, alpha, metadata, path, quality=None):
    """Write what `read_photo` returns as a PNG with the program's sign; with a quality, as a JPEG.

    metadata: None for none.
    """
    if alpha is not None and quality:  # JPEGs are not transparent, so white shows through
        share = alpha[:, :, None] / 255
        pixels = (pixels * share + 255 * (1 - share)).round().astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    if alpha is not None and not quality:
        image.putalpha(Image.fromarray(alpha))
    with atomic_write(path) as file:
        options = save_options(metadata or {}, quality)
        if pixels.size > LARGE:
            options["compress_level"] = 1
        image.save(file, "JPEG" if quality else "PNG", **options)


def only_colours(metadata):
    """The metadata of a photo that a picture drawn in its colours needs, too."""
    return {name: metadata[name] for name in COLOURS if name in metadata}


def photo_jobs(paths, suffixes, output=None, result=RESULT):
    """The work on files and folders: [(photo, how its results' names begin, why they cannot be written or None)].

    suffixes: how these names end. output: the folder for results; None: beside each photo. result: see list_files.
    Raises UserError if there is no photo.
    """
    files = list_files(paths, result)
    if not files:
        raise UserError(
            f"{display_path(paths[0])}: has no photos (looked for {', '.join(EXTENSIONS)}, also in subfolders)"
        )
    jobs, taken, sources = [], set(), {os.path.realpath(path) for path, _ in files}
    for (path, _), base in zip(files, result_bases(files, output)):
        outputs, problem = {os.path.realpath(base + suffix): base + suffix for suffix in suffixes}, None
        try:
            if taken & outputs.keys():
                raise UserError(f"{display_path(base + suffixes[0])}: two files would be written under this name")
            check_outputs([(name, "picture") for name in outputs.values()], outputs.keys() & sources)
            taken |= outputs.keys()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{display_path(error.filename)}: {error.strerror}; move it or write elsewhere"
        jobs.append((path, base, problem))
    return jobs


def list_files(paths, result=RESULT):
    """The photos among files and in folders with their subfolders: [(path, the same relative to its folder)].

    result: matches the names of results. Those in folders are left out; those among the files only beside their photo.
    """
    found, ours = [], {}
    for path in paths:
        if not os.path.isdir(path):
            if path.lower().endswith(".html") and _is_ours(path, "page"):  # named by a shell's *
                _tell(f"{display_path(path)}: left out, as it is a page of results")
                continue
            found.append((path, os.path.basename(path)))
            match = result.match(path)
            if match and _is_ours(path):
                ours[path] = match["base"]
            continue
        unread = []
        for file in walk_files(path, _tell_unread):
            name = file.lower()
            if name.endswith((*EXTENSIONS, ".gif")):
                if not (result.search(file) and _is_ours(file)):
                    found.append((file, os.path.relpath(file, path)))
            elif name.endswith(UNREAD):
                unread.append(os.path.relpath(file, path))
        if unread:
            _tell(f"{display_path(path)}: {left_out(unread)}")
    photos = [path for path, _ in found if path not in ours]
    bases = {base for path in photos for base in (os.path.splitext(path)[0], _with_extension(path))}
    for path in [path for path, base in ours.items() if base in bases]:
        _tell(f"{display_path(path)}: left out, as it is the result of another photo")
        del ours[path]
        found = [(file, name) for file, name in found if file != path]
    return list({os.path.realpath(file): (file, name) for file, name in found}.values())


def _is_ours(path, kind="picture"):
    with contextlib.suppress(OSError):  # it cannot be read
        return os.path.isfile(path) and written_by_us(path, kind)
    return False


def _with_extension(path):
    """How results' names begin for a photo, a.jpg, beside which there is an a.png: a_jpg."""
    stem, extension = os.path.splitext(path)
    return f"{stem}_{extension[1:]}"


def _tell_unread(error):
    _tell(f"main.py: error: {display_path(error.filename)}: left out ({error.strerror})")


def result_bases(files, output):
    """How the names of each photo's results begin: with its own name, see also _with_extension.

    files: from list_files.
    """
    counts, bases = {}, []  # {folder: how many photos there have each name without extension}
    for path, relative in files:
        folder, name = os.path.split(path)
        if folder not in counts:
            names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            # In lower case: many systems take names that differ in case alone for the same.
            counts[folder] = Counter(os.path.splitext(n.lower())[0] for n in names if n.lower().endswith(EXTENSIONS))
        stem, extension = os.path.splitext(relative if output else path)
        others = counts[folder][os.path.splitext(name)[0].lower()] - name.lower().endswith(EXTENSIONS)
        stem = _with_extension(stem + extension) if others > 0 else stem
        bases.append(os.path.join(output, stem) if output else stem)
    return bases
