"""Photos of the user's, of any size and colour: listed, read, and written beside them or to another folder."""

import contextlib
import os
import re
import sys
import warnings
from collections import Counter

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from tqdm import tqdm

from datasets import to_8_bits
from depixelation.engine.outputs import check_outputs, sign, written_by_us
from utils import UserError, atomic_write, display_path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # of the photos of a folder
RESULT = re.compile(r"_(depixelated|before_after|preview|spread|sample_\d+)\.png$")


def read_photo(path):
    """A photo as (pixels, (H, W, C) uint8 with C 1 or 3, upright; alpha, (H, W) uint8 or None; ICC profile or None).

    Raises UserError.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, without end
            raise UserError(f"{path}: is no plain file; name a photo")
        with Image.open(path) as file:
            if getattr(file, "is_animated", False) and file.format != "MPO":
                raise UserError(f"{path}: has several frames or pages; name a picture of one")
            file.load()
            image = file
            with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
                image = ImageOps.exif_transpose(file)  # damaged EXIF spoils no pixel
            if image.mode == "F" or image.mode == "I" and file.format == "TIFF":
                raise UserError(f"{path}: has no greys of 8 or 16 bits, so black and white are unknown; save it with 8")
            profile = file.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P", "L") else None
            alpha = None
            if image.has_transparency_data and not image.mode.startswith("I"):
                image = image.convert("RGBA")
                alpha = np.asarray(image.getchannel("A"))
                profile = profile if file.mode != "L" else None  # of grey values, for what is colours now
            if image.mode.startswith("I"):
                tqdm.write(f"{display_path(path)}: has 16 bits a pixel, what is written 8", file=sys.stderr)
                pixels = to_8_bits(image)
            else:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels; make it smaller"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'not a readable picture'}; name a photo") from None
    except Exception as error:  # whatever a broken file makes a decoder raise
        raise UserError(f"{path}: not a readable picture ({error})") from None
    return pixels.reshape(*pixels.shape[:2], -1), alpha, profile


def save_photo(pixels, alpha, profile, path, quality=None):
    """What `read_photo` returned, or what became of it, as a PNG with the program's sign; with a quality, as a JPEG."""
    if alpha is not None and quality:  # no JPEG is transparent: over white
        share = alpha[:, :, None] / 255
        pixels = (pixels * share + 255 * (1 - share)).round().astype(np.uint8)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    if alpha is not None and not quality:
        image.putalpha(Image.fromarray(alpha))
    with atomic_write(path) as file:
        if quality:
            image.save(file, "JPEG", quality=quality, icc_profile=profile, comment=sign("picture"))
            return
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", sign("picture"))
        image.save(file, "PNG", icc_profile=profile, pnginfo=text)


def output_paths(paths, suffix, output=None):
    """The path that is written for each photo, beside it or in the folder `output`, after check_outputs."""
    bases = [os.path.join(output, os.path.basename(path)) if output else path for path in paths]
    written = [os.path.splitext(base)[0] + suffix for base in bases]
    check_outputs([(path, "picture") for path in written], paths)
    return written


def list_files(paths):
    """[(photo, the same relative to the folder that was named)], of files and of folders, which are walked."""
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append((path, os.path.basename(path)))
            continue
        for folder, subfolders, files in os.walk(path, onerror=_tell_unread):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(files):
                file = os.path.join(folder, name)
                result = RESULT.search(name) and os.path.isfile(file) and written_by_us(file, "picture")
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".") and not result:
                    found.append((file, os.path.relpath(file, path)))
    return list({os.path.realpath(file): (file, name) for file, name in found}.values())


def _tell_unread(error):
    print(f"main.py: error: {display_path(error.filename)}: left out ({error.strerror})", file=sys.stderr)


def result_bases(files, output):
    """What the names of each photo's results begin with: its own without extension, unless another photo has that too.

    files: as from list_files.
    """
    counts, bases = {}, []  # {folder: how many photos there bear each name without extension}
    for path, relative in files:
        folder, name = os.path.split(path)
        if folder not in counts:
            names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            # lower: many systems hold names that differ by case alone for one
            counts[folder] = Counter(os.path.splitext(n.lower())[0] for n in names if n.lower().endswith(EXTENSIONS))
        stem, extension = os.path.splitext(relative if output else path)
        others = counts[folder][os.path.splitext(name)[0].lower()] - name.lower().endswith(EXTENSIONS)
        stem = f"{stem}_{extension[1:]}" if others > 0 else stem
        bases.append(os.path.join(output, stem) if output else stem)
    return bases
