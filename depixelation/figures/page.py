"""The page that shows photos before and after: one HTML file beside the results. It needs no network, no library."""

import base64
import hashlib
import html
import io
import json
import os
import pathlib
import re
import urllib.parse
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from datasets import FORMATS
from depixelation.engine.outputs import sign, written_by_us
from depixelation.engine.processes import quiet
from depixelation.figures.page_style import SCRIPT, STYLE
from depixelation.images.decoding import size_of
from depixelation.images.photo_files import read_photo
from utils import atomic_write, display_path

NAME = "depixelated.html"
GUESS = "Restored pixels are a guess. They do not recover what was hidden, and do not identify people, plates or text."
NOTHING = "no pixelated area found; --area X Y WIDTH HEIGHT says where one is"
SHOWN = {"JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF"}  # formats that every browser shows
PLAIN = {"1", "L", "P", "RGB", "RGBA", "LA"}  # modes in which browsers show the colours that Pillow reads
EMBEDDED = 1600  # pixels a side, at most, of a picture that is stored in the page
OUTLINE = re.compile(r"[MHVz0-9 ]*")
KEPT = re.compile(r'<script type="application/json" id="photos">(.*?)</script>', re.DOTALL)


@dataclass
class Entry:
    """A photo on the page. Paths are those of files."""

    before: str
    after: str | None = None  # None: nothing was restored
    areas: list[dict] = field(default_factory=list)  # as of `area_entry`
    facts: list[str] = field(default_factory=list)  # lines of text
    samples: list[str] = field(default_factory=list)
    spread: str | None = None
    problem: str | None = None  # why nothing was restored


def area_entry(area):
    """What the page shows of an Area: its outline as an SVG path, in the photo's pixels, and a line of text."""
    inside = np.pad(area.inside, 1).astype(np.int8)
    path = []
    for axis, letter in ((0, "H"), (1, "V")):
        edges = np.diff(inside if axis == 0 else inside.T, axis=0)[:, 1:-1] != 0  # between a pixel and the one before
        turns = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        for line, start, end in zip(*np.nonzero(turns == 1), np.nonzero(turns == -1)[1]):
            x, y = (start, line) if axis == 0 else (line, start)
            path.append(f"M{area.x + x} {area.y + y}{letter}{end + (area.x, area.y)[axis]}")
    sizes = [f"{side:.4g}" for side in (area.block_width, area.block_height)]
    blocks = sizes[0] if sizes[0] == sizes[1] else " x ".join(sizes)
    sure = "named by you" if area.confidence is None else f"confidence {area.confidence:.2f}"
    text = f"{area.width} x {area.height} pixels at {area.x}, {area.y}: blocks of {blocks}, {sure}"
    box = [int(n) for n in (area.x, area.y, area.width, area.height)]
    return {"box": box, "outline": "".join(path), "text": text}


def write_page(entries, path, title="Restored photos", guess=GUESS):
    """Write the page of these Entries, atomically. Their pictures are linked, relative to it. guess: what to beware of.

    An Entry without areas and facts shows an earlier result. It gets those that the page had so far. Raises OSError.
    """
    folder, details = os.path.dirname(os.path.abspath(path)), _details(path)
    for entry in entries:
        if entry.after and not entry.areas and not entry.facts:
            entry.areas, entry.facts = details.get(_url(entry.after, folder), ([], []))
    shown = [entry for entry in entries if entry.after]
    others = [entry for entry in entries if not entry.after]
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    kept = json.dumps({_url(e.after, folder): (e.areas, e.facts) for e in shown}).replace("<", "\\u003c")
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f'<meta name="generator" content="{sign("page")}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f'<header><h1>{_text(title)}</h1>\n<p class="guess">{_text(guess)}</p></header>\n<main>',
        *(_article(entry, folder, number) for number, entry in enumerate(shown, 1)),
        _others(others),
        f'</main>\n<script type="application/json" id="photos">{kept}</script>',
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
    ]
    with atomic_write(path) as file:
        file.write("\n".join(filter(None, parts)).encode("utf-8", "backslashreplace"))


def _details(path):
    """{link to a result: (areas, facts)} of the page that an earlier run wrote; {} where there is none."""
    if not os.path.isfile(path) or not written_by_us(path, "page"):
        return {}
    details = {}
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.loads(KEPT.search(file.read())[1])
        for link, (areas, facts) in kept.items():
            for area in areas:
                area["box"] = [int(n) for n in area["box"]]
                if area.keys() != {"box", "outline", "text"} or not OUTLINE.fullmatch(area["outline"]):
                    raise ValueError(area)
            details[link] = areas, [str(fact) for fact in facts]
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):  # somebody else changed the page
        return {}
    return details


# ------------------------------------------------------------------------------------------------ parts of the page


def _article(entry, folder, number):
    name = _name(entry.before)
    try:
        with open(entry.after, "rb") as file:
            width, height = size_of(file)
    except (OSError, ValueError, Image.DecompressionBombError):
        return f"<article><h2>{name}</h2>\n<p>{_text(display_path(entry.after))} cannot be read.</p></article>"
    after = _url(entry.after, folder)
    lazy = ' loading="lazy"' * (number > 2)
    outlines = "".join(f'<path d="{area["outline"]}"/>' for area in entry.areas)
    return f"""<article id="photo-{number}">
<h2>{name}</h2>
<figure class="view" style="--width: {width}; --height: {height}">
<div class="layer before"><img class="stage" src="{_before(entry.before, folder)}"{lazy} alt="Before"></div>
<div class="layer after"><img class="stage" src="{after}"{lazy} alt="After: a guess"></div>
<svg class="stage areas" viewBox="0 0 {width} {height}" aria-hidden="true">{outlines}</svg>
<span class="tag left" aria-hidden="true">before</span><span class="tag right" aria-hidden="true">after: a guess</span>
<span class="divider" aria-hidden="true"></span>
<input type="range" min="0" max="100" value="50" step="1" aria-label="Per cent of the width with the photo before">
</figure>
{_choices(entry, folder, after, number)}{_areas(entry)}{_facts(entry)}</article>"""


def _choices(entry, folder, after, number):
    """Buttons that choose the picture after: the restoration, a sample, or how far samples differ."""
    pictures = [("Restored", after)]
    pictures += [(f"Sample {i}", _url(path, folder)) for i, path in enumerate(entry.samples, 1)]
    pictures += [("How far samples differ", _url(entry.spread, folder))] if entry.spread else []
    if len(pictures) < 2:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="shown-{number}" value="{url}"{" checked" * (i == 0)}> {label}</label>\n'
        for i, (label, url) in enumerate(pictures)
    )
    return f'<fieldset class="choices"><legend>After</legend>\n{choices}</fieldset>\n'


def _areas(entry):
    if not entry.areas:
        return ""
    items = "".join(
        f'<li><button type="button" data-box="{" ".join(map(str, area["box"]))}" aria-pressed="false">'
        f"{_text(area['text'])}</button></li>\n"
        for area in entry.areas
    )
    many = f"{len(entry.areas)} areas" if len(entry.areas) > 1 else "One area"
    return f'<p class="hint">{many}; choose one to look closer.</p>\n<ol class="list">{items}</ol>\n'


def _facts(entry):
    return f'<ul class="facts">{"".join(f"<li>{_text(fact)}</li>" for fact in entry.facts)}</ul>\n' * bool(entry.facts)


def _others(entries):
    """The list of photos without a result, and why."""
    if not entries:
        return ""
    reasons = [(e.before, (e.problem or NOTHING).removeprefix(f"{display_path(e.before)}: ")) for e in entries]
    items = "".join(f"<li>{_name(path)}: {_text(reason)}</li>\n" for path, reason in reasons)
    return f'<section id="others"><h2>Without a result</h2>\n<ul>{items}</ul></section>'


# ------------------------------------------------------------------------------------------------ text and links


def _text(text):
    """Escape text for HTML. Bytes of a file's name that are no Unicode become \\x.."""
    return html.escape(str(text).encode("utf-8", "backslashreplace").decode())


def _name(path):
    return f"<bdi>{_text(display_path(path))}</bdi>"  # isolates names that run from right to left


def _url(path, folder):
    """The link from a page in this folder to a file, in ASCII that has no meaning in HTML."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # on another drive
        return pathlib.Path(path).absolute().as_uri()
    return urllib.parse.quote(os.fsencode(relative.replace(os.sep, "/")))


def _before(path, folder):
    """A link to a photo, or a small embedded copy if browsers might not show it as it was read."""
    if not os.path.isfile(path):
        return _url(path, folder)
    try:
        with Image.open(path, formats=FORMATS) as picture:
            turned = picture.format not in ("JPEG", "MPO") and picture.getexif().get(0x0112, 1) != 1
            if picture.format in SHOWN and picture.mode in PLAIN and not turned:
                return _url(path, folder)
        with quiet():
            pixels, alpha, metadata = read_photo(path)
    except Exception:  # a broken file makes decoders raise anything; its place stays empty
        return _url(path, folder)
    picture, buffer = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]), io.BytesIO()
    if alpha is not None:
        picture.putalpha(Image.fromarray(alpha))
    kind = "JPEG" if alpha is None else "PNG"
    picture.thumbnail((EMBEDDED, EMBEDDED))
    picture.save(buffer, kind, quality=90, icc_profile=metadata.get("icc_profile"))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
