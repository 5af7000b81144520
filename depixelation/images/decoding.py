"""Decodes photos as leniently as viewers do: bad metadata is skipped, and most of a truncated file is used."""

import contextlib
import io
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from datasets import FORMATS

MAX_FILE_BYTES = 256 * 2**20  # larger damaged photos are not mended; in training, larger files are taken for zip bombs
ENOUGH = 0.95  # share of a photo's rows that must be readable
MAX_PROFILE_BYTES = 32 * 2**20
COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")  # chunks of a PNG that say what its values mean
NEEDED_CHUNKS = (*COLOUR_CHUNKS, b"iCCP", b"tRNS", b"pHYs", b"eXIf", b"acTL", b"fcTL", b"fdAT")
XMP_TEXT = b"XML:com.adobe.xmp\0\0"  # how uncompressed XMP begins
BY_ROWS = ("PNG", "BMP", "DIB", "TIFF", "PPM", "GIF", "TGA", "QOI")  # Pillow reads their rows up to a cut,
FAIL_LATE = ("TIFF", "QOI")  # and raises an error for these
GREY = 128  # of rows that are missing


class CutPhoto(ValueError):
    """Too much of a photo is missing."""


class Decoded(NamedTuple):
    """A decoded photo."""

    image: Image.Image  # loaded, not turned upright yet
    bits: int  # per channel, in the file
    share: float  # of its rows that could be read

    def damage(self):
        """A line for the user about rows that are missing. None if there are none."""
        return None if self.share == 1 else f"only {self.share:.1%} of the rows can be read; the others are grey"


def decode(file, prepare=lambda image: None):
    """The Decoded photo of a binary file. prepare: called with the Pillow image before it is loaded.

    Raises CutPhoto, or what Pillow or `prepare` raise.
    """
    try:
        return Decoded(*_load(file, prepare), 1.0)
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception as error:  # a broken file makes decoders raise anything
        file.seek(0)
        data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise
        try:
            return _mend(data, prepare)
        except (MemoryError, CutPhoto):
            raise
        except Exception:
            if _lacks_its_end(data):
                raise CutPhoto("its end is missing") from None
            raise error from None


def size_of(file):
    """(width, height) of the photo in a binary file, which is decoded only where Pillow cannot open it."""
    with contextlib.suppress(ValueError, SyntaxError), Image.open(file, formats=FORMATS) as image:
        return image.size
    file.seek(0)
    return decode(file).image.size


def _load(file, prepare):
    image = Image.open(file, formats=FORMATS)
    bits = _bits(image)
    prepare(image)
    image.load()
    return image, bits


def _bits(image):
    """Bits a channel of an image that is not loaded yet."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    if image.format in ("JPEG2000", "AVIF"):
        image.fp.seek(0)
        head = image.fp.read(2**16)
        codestream, deep = head.find(b"\xff\x4f\xff\x51"), head.find(b"av1C")
        if image.format == "AVIF":
            return 10 if 0 <= deep < len(head) - 6 and head[deep + 6] & 0x40 else 8
        return (head[codestream + 42] & 0x7F) + 1 if 0 <= codestream < len(head) - 42 else 8
    deep = any(";16" in str(tile[3]) or tile[0].startswith("ppm") and tile[3][1] > 255 for tile in image.tile)
    return 16 if deep else 8


def _mend(data, prepare):
    """The Decoded photo of a file that Pillow refuses. Raises CutPhoto, or any error where nothing helps."""
    rng = np.random.default_rng(0)
    if data.startswith(b"\xff\xd8"):
        if not _has_all_scans(data):
            raise CutPhoto("too much of its end is missing")
        start, noise = data.rstrip(b"\xff"), rng.bytes(2**16).replace(b"\xff", b"")  # which would begin a marker
        return _padded([start + more + b"\xff\xd9" for more in (b"", noise)], prepare)
    if data.startswith(b"RIFF"):
        more = [bytes(2 * len(data) + 2**16), *(rng.bytes(2 * len(data) + 2**16) for _ in range(4))]
        return _padded([_longer_webp(data, each) for each in more], prepare, 8)
    data = _needed_chunks(data) if data.startswith(b"\x89PNG") else data
    with _truncated_allowed():
        (image, bits), (other, _) = (_load_rows(io.BytesIO(data), prepare, value) for value in (GREY, 0))
    return _checked(image, bits, _rows_that_differ(image, other))


def _padded(files, prepare, reach=1):
    """The Decoded photo of a cut file that was made longer, in several ways.

    Each way decodes something else after the end. Rows that the file holds come out the same in all that can be read.
    reach: how many of these the decoder smooths with the next ones.
    """
    loaded = []
    for data in files:
        with contextlib.suppress(OSError, EOFError):
            loaded.append(_load(io.BytesIO(data), prepare))
    if len(loaded) < 2:
        raise CutPhoto("its end is missing")
    (image, bits), *others = loaded
    missing = np.logical_or.accumulate(np.any([_rows_that_differ(image, other) for other, _ in others], axis=0))
    missing[:-reach] |= missing[reach:]
    return _checked(image, bits, missing)


def _checked(image, bits, missing):
    """The Decoded photo without these rows, (H,) bool."""
    share = 1 - missing.mean()
    if share < ENOUGH:
        raise CutPhoto(f"only {share:.1%} of its rows can be read")
    if missing.any():
        bands = image.getbands()
        grey = [255 if band == "A" else GREY for band in bands]
        if image.mode == "P":
            palette = np.reshape(image.getpalette(), (-1, 3))
            grey = [int(np.abs(palette - GREY).sum(axis=1).argmin())]
        rows = Image.fromarray(np.broadcast_to(missing[:, None], (len(missing), image.width)).astype(np.uint8) * 255)
        image.paste(tuple(grey) if len(bands) > 1 else grey[0], None, rows)
    return Decoded(image, bits, float(share))


def _rows_that_differ(image, other):
    """(H,) bool."""
    a, b = np.asarray(image), np.asarray(other)
    return (a != b).reshape(len(a), -1).any(axis=1)


def _load_rows(file, prepare, value):
    """Load a cut file as `_load` does. The image has the value where nothing is decoded."""
    image = Image.open(file, formats=FORMATS)
    if image.format not in BY_ROWS:
        raise CutPhoto("its end is missing")
    bits, begin = _bits(image), image.load_prepare

    def begin_filled():
        begin()
        bands = len(image.getbands())
        image.im.paste((value,) * bands if bands > 1 else value, (0, 0, *image.size))

    prepare(image)
    image.load_prepare = begin_filled
    with contextlib.suppress(*(OSError, ValueError) if image.format in FAIL_LATE else ()):
        image.load()
    image.tile = []  # so that Pillow does not load it again
    return image, bits


def _longer_webp(data, more):
    """A cut WebP with `more` at the end of its pixels' chunk, and nothing after it."""
    parts, position = [], 12
    while position + 8 <= len(data):
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        content = data[position + 8 : position + 8 + length]
        if len(content) == length or kind in (b"VP8 ", b"VP8L"):
            content += more if len(content) < length else b""
            parts.append(kind + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2))
        position += 8 + length + length % 2
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _lacks_its_end(data):
    """Whether a file ends before its own header says it does."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data[:2] in (b"II", b"MM"):
        return len(data) < 2 + int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big")
    if data.startswith(b"\xff\x4f\xff\x51"):
        return not data.endswith(b"\xff\xd9")
    position = 0
    while data[4:8] in (b"ftyp", b"jP  ") and position + 8 <= len(data):  # boxes
        length = int.from_bytes(data[position : position + 4], "big")
        if not length:  # up to the end of the file
            return not data.endswith(b"\xff\xd9")
        position += max(8, length if length > 1 else int.from_bytes(data[position + 8 : position + 16], "big"))
    return position > len(data)


@contextlib.contextmanager
def _truncated_allowed():
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _has_all_scans(data):
    """Whether a JPEG has begun the last scan of each coefficient. Before that, a progressive one is sharp nowhere."""
    left, position = None, 2
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 4:
        marker = data[position + 1]
        if marker == 0xFF or marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # fill bytes, or markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame's components
            left = {(component, k) for component in segment[6::3] for k in range(64)}
        elif marker == 0xDA and left and len(segment) >= 4 + 2 * segment[0]:  # a scan
            first, last, bits = segment[1 + 2 * segment[0] :][:3]
            if not bits & 15:
                left -= {(c, k) for c in segment[1 : 1 + 2 * segment[0] : 2] for k in range(first, last + 1)}
        position = end
    return left is not None and not left


# ------------------------------------------------------------------------------------------------ PNG


def png_chunks(file):
    """Yield each chunk of a PNG: (kind, content, whether its checksum is right). Pixels (IDAT) come without content."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IDAT" or length > MAX_PROFILE_BYTES:
            file.seek(length + 4, 1)
            yield kind, b"", False
            continue
        content = file.read(length)
        yield kind, content, file.read(4) == _checksum(kind, content)


def _checksum(kind, content):
    return zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big")


def _needed_chunks(data):
    """Drop chunks of a PNG that its pixels do not need, if they are damaged or, as long texts, stop Pillow.

    Raises ValueError if a chunk that the pixels need is damaged.
    """
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 12 + length
        content, checksum = data[position + 8 : end - 4], data[end - 4 : end]
        needed, right = kind in NEEDED_CHUNKS or content.startswith(XMP_TEXT), checksum == _checksum(kind, content)
        if kind[0:1].isupper() and not right and end <= len(data):
            raise ValueError(f"its {kind.decode(errors='replace')} is damaged")
        if kind[0:1].isupper() or (needed and right):
            if kind != b"iCCP" or len(inflate(content) or b"") < 2**20:  # Pillow refuses longer profiles
                parts.append(data[position:end])
        position = end
    return b"".join(parts)


def inflate(chunk):
    """The colour profile of an iCCP chunk; None if that is damaged or too long."""
    reader = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        profile = reader.decompress(chunk.partition(b"\0")[2][1:], MAX_PROFILE_BYTES)
        return profile if reader.eof else None
    return None
