"""Carries metadata from a photo over to its results: colours, EXIF, XMP, resolution."""

import contextlib

from PIL import ExifTags, PngImagePlugin

from depixelation.engine.outputs import sign
from depixelation.images.decoding import COLOUR_CHUNKS, inflate, png_chunks

COLOURS = ("icc_profile", "chunks")
# In a TIFF, EXIF lies among tags that locate its pixels. These tags describe the photo.
TIFF_TEXT = "ImageDescription Make Model Software DateTime HostComputer Artist Copyright XPTitle XPComment XPAuthor "
TIFF_TEXT += "XPKeywords XPSubject Rating RatingPercent ExifOffset GPSInfo"
TIFF_TAGS = [ExifTags.Base[name] for name in TIFF_TEXT.split()]
# Sizes that may be wrong now; and what may hold a thumbnail, which would show what the photo hides.
DROPPED, DROPPED_EXIF = [ExifTags.Base.Orientation, ExifTags.Base.SubIFDs], [ExifTags.Base.MakerNote]
DROPPED_EXIF += [ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight]
MAX_XMP_BYTES = 2**20
JPEG_SEGMENT = 65000  # bytes of EXIF or XMP that a JPEG has room for, about
FAR = 2**20  # bytes; behind a longer colour profile the sign is hard to find, so another one follows the pixels


def metadata_of(image, file):
    """The metadata of an image that Pillow has read from a binary file and `upright` has turned, for `save_options`.

    A dict: icc_profile, exif, xmp (bytes each), dpi (two floats), chunks (of a PNG, [(kind, content)]).
    """
    found = {"icc_profile": image.info.get("icc_profile"), "exif": _exif(image), "chunks": []}
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        dpi = tuple(float(value) for value in image.info["dpi"][:2])
        found["dpi"] = dpi if len(dpi) == 2 and all(0.5 < value < 65535 for value in dpi) else None
    xmp = image.info.get("xmp")
    if isinstance(xmp, bytes) and len(xmp) <= MAX_XMP_BYTES and b"humbnails" not in xmp:  # like MakerNote
        found["xmp"] = xmp.rstrip(b"\0")
    if image.format == "PNG":
        for kind, content, right in png_chunks(file):
            if right and kind in COLOUR_CHUNKS:
                found["chunks"].append((kind, content))
            elif right and kind == b"iCCP":  # Pillow skips those of more than a megabyte
                found["icc_profile"] = found["icc_profile"] or inflate(content)
    return {name: value for name, value in found.items() if value}


def _exif(image):
    with contextlib.suppress(Exception):  # damaged EXIF makes Pillow raise anything
        exif = image.getexif()
        for tag in list(exif):
            if tag in DROPPED or image.format == "TIFF" and tag not in TIFF_TAGS:
                del exif[tag]
        details = exif.get_ifd(ExifTags.IFD.Exif)
        for tag in DROPPED_EXIF:
            details.pop(tag, None)
        return exif.tobytes() if len(exif) else None
    return None


def save_options(metadata, quality=None):
    """The options of Pillow's save() that keep metadata in a PNG, or with a quality in a JPEG, with our sign."""
    options = {name: metadata[name] for name in ("icc_profile", "exif", "dpi") if name in metadata}
    xmp = metadata.get("xmp")
    if quality:
        if len(options.get("exif", b"")) > JPEG_SEGMENT:
            del options["exif"]
        if xmp and len(xmp) <= JPEG_SEGMENT:
            options["xmp"] = xmp
        return options | {"quality": quality, "comment": sign("picture")}
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", sign("picture"))
    if len(options.get("icc_profile", b"")) > FAR:
        text.add(b"siGn", sign("picture").encode(), after_idat=True)
    for kind, content in metadata.get("chunks", ()):
        text.add(kind, content)
    if xmp:
        with contextlib.suppress(UnicodeDecodeError):
            text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    return options | {"pnginfo": text}
