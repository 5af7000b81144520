"""The page of before and after: HTML that parses, whatever files are called, and that works in a browser."""

import base64
import errno
import hashlib
import html.parser
import os
import re
import subprocess
import urllib.parse

import numpy as np
import pytest
from conftest import drawn_photo
from PIL import Image

import main as entry_point
from depixelation.commands import depixelate, each_photo, enlarge
from depixelation.engine.outputs import written_by_us
from depixelation.figures.page import GUESS, NAME, Entry, area_entry, write_page
from depixelation.mosaics.area import Area

CHROMIUM = "/usr/bin/chromium"
VOID = {"meta", "img", "input", "path"}
HOSTILE = [
    '"><img src=x onerror=alert(1)>',
    "100% #1? & 'so' <\u202etxt",
    "line\nbreak </script><script>alert(2)</script>".replace("/", "\u2215"),
    os.fsdecode(b"caf\xe9 \xff"),
    "http:",
    "a;b=c\\d",
]


class Parsed(html.parser.HTMLParser):
    """The elements of a page, which must be balanced."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert not any(name.startswith("on") for name, _ in attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open:
            self.text += data

    def all(self, tag, name):
        return [attributes[name] for each, attributes in self.elements if each == tag and name in attributes]


def make_entry(folder, name, samples=0, extension=".png"):
    """An Entry whose pictures exist."""
    paths = [os.path.join(folder, name + end) for end in (extension, "_depixelated.png", "_spread.png")]
    for path in paths:
        Image.fromarray(drawn_photo(60, 40)).save(os.fsencode(path))
    more = [os.path.join(folder, f"{name}_sample_{i + 1}.png") for i in range(samples)]
    for path in more:
        Image.fromarray(drawn_photo(60, 40)).save(os.fsencode(path))
    area = Area(10, 12, 20, 16, 4, 4, confidence=0.93)
    return Entry(*paths[:2], [area_entry(area)], ["realism 0.5 </script><b>"], more, paths[2] if samples else None)


def link(url, folder):
    """The file that a link leads to."""
    assert re.fullmatch(r"[A-Za-z0-9_.~%/-]+", url), url
    return os.path.join(os.fsencode(folder), urllib.parse.unquote_to_bytes(url))


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names")
def test_hostile_names_stay_text_and_links_lead_to_the_files(tmp_path):
    inside = tmp_path / "in #1"
    inside.mkdir()
    entries = [make_entry(inside, name, samples=2) for name in HOSTILE]
    entries += [Entry(name, problem=f"{name}: no <b>picture</b>") for name in HOSTILE]
    page = tmp_path / "out" / NAME
    write_page(entries, page, "Photos <&> more")
    parsed = Parsed(page)
    links = parsed.all("img", "src") + [v for v in parsed.all("input", "value") if v != "50"]
    assert len(links) == len(HOSTILE) * (2 + 4) and all(os.path.isfile(link(url, page.parent)) for url in links)
    assert set(parsed.all("figure", "style")) == {"--width: 60; --height: 40"}
    assert parsed.all("script", "type") == ["application/json"] and len(parsed.all("meta", "name")) == 3
    assert [tag for tag, _ in parsed.elements].count("script") == 2 and GUESS in parsed.text
    assert not {"b", "a", "iframe", "link"} & {tag for tag, _ in parsed.elements}
    assert "://" not in parsed.source  # nothing comes from a network
    assert parsed.text.count(HOSTILE[0]) == 2 and "caf\\udce9 \\udcff" in parsed.text
    (policy,) = (a["content"] for tag, a in parsed.elements if "http-equiv" in a)
    script = re.findall(r"<script>(.*?)</script>", parsed.source, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in script]
    assert policy.startswith("default-src 'none';") and [f"'sha256-{d}'" in policy for d in digests] == [True]
    assert written_by_us(page, "page") and not written_by_us(page, "picture")


def test_what_was_not_found_is_listed_and_a_lost_result_spoils_nothing(tmp_path):
    lost = make_entry(tmp_path, "lost")
    os.remove(lost.after)
    write_page([Entry("clear.png"), Entry("bad.png", problem="bad.png: broken"), lost], tmp_path / NAME)
    parsed = Parsed(tmp_path / NAME)
    assert "clear.png: no pixelated area found" in parsed.text and "bad.png: broken" in parsed.text
    assert "lost_depixelated.png cannot be read" in parsed.text and not parsed.all("img", "src")


def test_results_of_earlier_runs_keep_their_details(tmp_path):
    entry, page = make_entry(tmp_path, "a"), tmp_path / NAME
    write_page([entry], page)
    first = page.read_text()
    write_page([Entry(entry.before, entry.after)], page)
    assert page.read_text() == first and "confidence 0.93" in first and "realism 0.5" in first
    for old, new in (('"M', '"M\\"><b>'), ("confidence", "\\ud800<b>"), ('"box": [10', '"box": ["x"'), ("{", "[")):
        text = first.replace('id="photos">', 'id="photos">\0')
        head, kept = text.split("\0")
        page.write_text(head + kept.replace(old, new, 1))
        write_page([Entry(entry.before, entry.after)], page)
        assert "b" not in {tag for tag, _ in Parsed(page).elements}


def test_outlines_are_those_of_masks():
    mask = np.zeros((3, 4), dtype=bool)
    mask[0, 1:3] = mask[1] = True
    path = area_entry(Area(10, 20, 4, 3, 2, 3, mask=mask, confidence=None))
    steps = sorted(re.findall(r"M\d+ \d+[HV]\d+", path["outline"]))
    wanted = ["M10 21H11", "M10 21V22", "M10 22H14", "M11 20H13", "M11 20V21", "M13 20V21", "M13 21H14", "M14 21V22"]
    assert steps == wanted and "blocks of 2 x 3, named by you" in path["text"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_what_browsers_do_not_show_is_stored_in_the_page(tmp_path):
    entries = [make_entry(tmp_path, name, extension=end) for name, end in (("a", ".tif"), ("b", ".jpg"))]
    Image.fromarray(drawn_photo(60, 40)).convert("CMYK").save(tmp_path / "c.jpg")
    entries.append(Entry(str(tmp_path / "c.jpg"), entries[0].after))
    os.mkfifo(tmp_path / "pipe.png")
    entries.append(Entry(str(tmp_path / "pipe.png"), entries[0].after))
    write_page(entries, tmp_path / NAME)
    links = Parsed(tmp_path / NAME).all("img", "src")[::2]
    assert [url.partition(",")[0] for url in links] == [
        "data:image/jpeg;base64",
        "b.jpg",
        "data:image/jpeg;base64",
        "pipe.png",
    ]


# ------------------------------------------------------------------------------------------------ as a command


DEPIXELATE = ["--depixelate"], "--area 10 10 20 20 --views 1".split(), "_depixelated.png", NAME
ENLARGE = ["--task", "super_resolution", "--predict"], [], "_x2.png", "enlarged.html"
MODULES = {NAME: (depixelate, "depixelate_photo"), "enlarged.html": (enlarge, "enlarge_file")}


@pytest.fixture(params=[DEPIXELATE, ENLARGE], ids=["depixelate", "enlarge"])
def command(request, tmp_path, monkeypatch):
    """(a function that calls main() with the command on photos and options, the ending of results, the page's name)"""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Image.fromarray(drawn_photo(60, 60)).save(f"{name}.png")
    words, more, end, page = request.param
    return lambda *operands: entry_point.main([*words, *operands, *more]), end, page


def test_several_photos_or_the_option_write_a_page(command, tmp_path, capsys):
    run, end, name = command
    page, about = tmp_path / name, "20 x 20 pixels at 10, 10" if name == NAME else "120 x 120 pixels, twice the size"
    assert run("a.png") == 0 and not page.exists()
    assert run("a.png", "--page", "--overwrite") == 0
    assert f"Before and after: {name}" in capsys.readouterr().out
    assert Parsed(page).all("img", "src") == ["a.png", f"a{end}"] and about in Parsed(page).text
    assert run("a.png", "b.png", "none.png", "--output", "out") == 1
    parsed = Parsed(tmp_path / "out" / name)
    assert parsed.all("img", "src") == ["../a.png", f"a{end}", "../b.png", f"b{end}"]
    assert "none.png: No such file" in parsed.text and parsed.text.count(about) == 2 and " a guess" in parsed.text
    assert run("a.png", "b.png", "--output", "out") == 0  # what is skipped keeps its details
    assert "2 have results" in capsys.readouterr().out and Parsed(tmp_path / "out" / name).text.count(about) == 2
    page.write_text("the user's")
    assert run("a.png", "b.png") == 2
    assert page.read_text() == "the user's" and not (tmp_path / f"b{end}").exists()


def test_what_is_done_is_on_the_page_after_ctrl_c(command, tmp_path, monkeypatch):
    run, end, name = command
    module, function = MODULES[name]
    work = getattr(module, function)

    def interrupted(*arguments):
        if (tmp_path / f"a{end}").exists():
            raise KeyboardInterrupt
        return work(*arguments)

    monkeypatch.setattr(module, function, interrupted)
    assert run("a.png", "b.png") == 130
    assert Parsed(tmp_path / name).all("img", "src") == ["a.png", f"a{end}"]


def test_a_page_that_cannot_be_written_costs_a_line(command, tmp_path, monkeypatch, capsys):
    run, end, name = command

    def full(*arguments, **words):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / name))

    monkeypatch.setattr(each_photo, "write_page", full)
    assert run("a.png", "b.png") == 1 and (tmp_path / f"b{end}").exists()
    assert f"{name}: cannot be written (No space left" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ in a browser


def browse(page, profile, *options, hash=""):
    """What headless Chromium writes of a page."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=3000", *options, page.as_uri() + hash]
    return subprocess.run(command, capture_output=True, timeout=120).stdout.decode(errors="replace")


@pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="needs Debian's package chromium")
def test_the_slider_moves_in_a_browser_and_no_name_runs_a_script(tmp_path):
    page = tmp_path / NAME
    write_page([make_entry(tmp_path, name, samples=1) for name in HOSTILE], page)
    checks = """<script>addEventListener('load', () => setTimeout(() => {
      for (const view of document.querySelectorAll('.view')) {
        const clip = getComputedStyle(view.querySelector('.after')).clipPath, image = view.querySelector('.after img');
        view.dataset.clip = clip; view.dataset.loaded = image.naturalWidth;
      }
      document.querySelector('button').click();
      document.querySelectorAll('.choices input')[1].click();
      document.title = 'checked';
    }, 500));</script>"""
    text = page.read_text(encoding="utf-8")
    dumped = browse(page, tmp_path / "profile", "--dump-dom", hash="#25")
    assert dumped.count("--at: 25%") == len(HOSTILE) and "<title>Restored photos" in dumped
    page.write_text(re.sub("<meta http-equiv[^>]*>", "", text).replace("</body>", checks + "</body>"), encoding="utf-8")
    dumped = browse(page, tmp_path / "profile", "--dump-dom", "--window-size=900,9000", hash="#75")
    views = re.findall(r'<figure class="view"[^>]*>', dumped)
    assert len(views) == len(HOSTILE) and "<title>checked" in dumped
    assert all('data-clip="inset(0px 0px 0px 75%)"' in view and 'data-loaded="60"' in view for view in views)
    zoom = float(re.search(r"--zoom: ([\d.]+)", views[0])[1])
    assert zoom == pytest.approx(40 / 16 / 1.5, abs=1e-3) and 'aria-pressed="true"' in dumped
    assert re.search(r'class="layer after"><img[^>]*src="[^"]*_sample_1.png"', dumped)
