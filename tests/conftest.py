import collections
import contextlib
import csv
import itertools
import multiprocessing
import os
import pickle
import re
import select
import shutil
import signal
import sys
import types
from multiprocessing import forkserver

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks are tiny here; before PyTorch is imported, for processes too
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import main as entry  # noqa: E402
from datasets import block_means, draw_rectangle, prepare_image  # noqa: E402
from depixelation.engine import run as runs  # noqa: E402
from depixelation.images.synthetic import synthetic_colour_image, synthetic_image  # noqa: E402
from depixelation.mosaics import rectangle_tasks  # noqa: E402
from utils import locked  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background


def start_process(function, *arguments):
    """The multiprocessing.Process, started, that calls the function: forked from one that has imported all, which saves
    the time of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest"])
    with contextlib.chdir(os.path.dirname(os.path.abspath(__file__))):  # where that one looks for what it imports
        forkserver.ensure_running()
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def start_main(arguments, output=None, environment=None, method=None):
    """main() in a process of its own.

    output: a file for what it prints. method: how it starts processes itself. Returns the multiprocessing.Process,
    started.
    """
    return start_process(_call_main, arguments, output, environment or {}, method)


def _call_main(arguments, output, environment, method):
    os.environ |= environment
    if method:
        multiprocessing.set_start_method(method, force=True)
    if output:
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
    sys.exit(entry.main([str(word) for word in arguments]))


def save_photo(path, index, size=(150, 130), **options):
    """A colour photo of width x height, drawn by the program."""
    channels = [synthetic_image(7, 3 * index + i, 160)[: size[1], : size[0]] for i in range(3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack(channels, axis=2)).save(path, **options)


@pytest.fixture(scope="session", autouse=True)
def textures():
    """Those of drawn images take over a second: processes that are forked to draw inherit them."""
    synthetic_image(0, 0, 8)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 12 folders of 5 JPEGs."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(60):
        save_photo(folder / f"{i // 5:03}" / f"{i:07}.jpg", i)
    return folder


CPU = ["--device", "cpu", "--precision", "float32"]
# Options of tiny runs. A test file that needs others than the first has a TINY of its own.
TINY = ["--network", "BasicCNN", "--network_options", '{"channels": 8, "layers": 2}', "--synthetic_images", "40"]
TINY += ["--batch_size", "16", *CPU]
TINY_UNET = ["--network_options", '{"channels": [16, 32], "blocks": [1, 1]}', "--synthetic_images", "64"]
TINY_UNET += ["--batch_size", "16", *CPU]
TINY_DIGITS = ["--task", "classification", "--network", "SimpleCNN", "--synthetic_images", "400", "--batch_size", "32"]
TINY_DIGITS += CPU


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder with a trained run, default, and the cache of its images."""
    folder = tmp_path_factory.mktemp("shared")
    assert entry.main([*TINY, "--output_dir", str(folder), "--cache_dir", str(folder / "cache"), "--epochs", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def trained_digits(tmp_path_factory):
    """The folder of a run that learned drawn digits well: models/classification.pt. Processes of xdist share it."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained_digits"
    with locked(f"{folder}.lock", "waiting for another process", wait=True):
        if not folder.exists():
            made = tmp_path_factory.mktemp("digits")
            options = ["--synthetic_images", "1500", "--epochs", "4", "--output_dir", str(made)]
            assert entry.main([*TINY_DIGITS, *options, "--name", "classification"]) == 0
            made.rename(folder)
    return folder


DRAWN = collections.Counter()  # figures of each kind


@pytest.fixture
def figures():
    """Of tests that look at the figures which are drawn."""


@pytest.fixture(autouse=True)
def quick_figures(request, monkeypatch):
    """To draw a run's figures takes as long as to train it: the first of each kind are drawn, the others left white."""
    savefig = Figure.savefig

    def save(figure, file, dpi, metadata=None, pil_kwargs=None, **options):
        kind = sys._getframe(2).f_code.co_name  # the function that called save_figure
        DRAWN[kind] += 1
        if "figures" in request.fixturenames or DRAWN[kind] <= 3:
            savefig(figure, file, dpi=dpi, metadata=metadata, pil_kwargs=pil_kwargs, **options)
            return
        comment = PngInfo()
        for key, text in (metadata or {}).items():
            comment.add_text(key, text)
        size = (figure.get_size_inches() * dpi).round().astype(int)
        Image.new("RGB", tuple(size), "white").save(file, options["format"], pnginfo=comment, **(pil_kwargs or {}))

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture(scope="module")
def cache_dir(request, shared, tmp_path_factory):
    """Where the caches of a file's tests lie, so that their images are drawn once."""
    return tmp_path_factory.mktemp("cache") if hasattr(request.module, "TINY") else shared / "cache"


@pytest.fixture
def run(request, cache_dir, tmp_path, monkeypatch):
    """Calls main() with the options of a tiny run, in tmp_path, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    options = getattr(request.module, "TINY", TINY)
    return lambda *more: entry.main(
        [*options, "--output_dir", str(tmp_path), "--cache_dir", str(cache_dir), *map(str, more)]
    )


@pytest.fixture
def model(shared, tmp_path):
    """A model file in tmp_path."""
    return shutil.copy(shared / "models" / "default.pt", tmp_path / "model.pt")


@pytest.fixture
def predict(run, model, tmp_path):
    """Calls main() with --predict on a test pickle of 4 images, test.pkl."""
    samples = [prepare_image(synthetic_image(1, i, 64)[None], 5, 5, 20, 20, 7) for i in range(4)]
    data = {"pixelated_images": tuple(s[0] for s in samples), "known_arrays": tuple(s[1] for s in samples)}
    (tmp_path / "test.pkl").write_bytes(pickle.dumps(data, 4))
    return lambda *more: run("--predict", "--model", "model.pt", "--test_set", "test.pkl", *more)


@pytest.fixture
def test_set(tmp_path):
    """A test pickle of 20 images, one of them, among the first that are drawn, of another size; its path and arrays."""
    rng, images, known = np.random.default_rng(0), [], []
    for i in range(20):
        image = synthetic_image(1, i, 80 if i == 5 else 64)[None]
        pixelated, mask, _ = prepare_image(image, *rng.integers(0, 30, 2), *rng.integers(4, 33, 2), rng.integers(4, 17))
        images.append(pixelated)
        known.append(mask)
    path = tmp_path / "test_set.pkl"
    path.write_bytes(pickle.dumps({"pixelated_images": tuple(images), "known_arrays": tuple(known)}, 4))
    return str(path), images, known


@pytest.fixture
def refused(capsys):
    """Checks that a status is 2 and the error one line that holds all these words."""

    def check(status, *words):
        lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "error:" in line]
        assert status == 2 and len(lines) == 1
        assert all(word in lines[0] for word in words), lines[0]

    return check


def some_photos(folder, count, first=0):
    for i in range(first, first + count):
        save_photo(folder / f"{i:03}.jpg", i, (80, 70))


def draw_batch(count, *ranges):
    """(pixelated images, known arrays, images) of drawn images. ranges: of the rectangles' widths, heights, blocks."""
    rng, drawn = np.random.default_rng(0), [synthetic_image(5, i, 64)[None] for i in range(count)]
    pixelated, known, _ = zip(*(prepare_image(image, *draw_rectangle(rng, 64, 64, *ranges)) for image in drawn))
    return tuple(torch.from_numpy(np.stack(arrays)) for arrays in (pixelated, known, drawn))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log(tmp_path, name="default"):
    with open(tmp_path / "losses" / f"{name}.csv", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def load_weights(path):
    """Of a model or of the state of a run."""
    saved = torch.load(path, weights_only=True)
    return saved["parts"]["network"]["weights"] if "parts" in saved else saved["weights"]


def interrupt_at(monkeypatch, step, number=signal.SIGINT, owner=rectangle_tasks, name="training_loss"):
    """Send the signal to this process while the loss of that step is computed, by the owner's function of this name."""
    calls, loss = [], getattr(owner, name)

    def patched(*arguments):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return loss(*arguments)

    monkeypatch.setattr(owner, name, patched)


def tick(monkeypatch, seconds):
    """Replaces the clock of training by one that goes on by so many seconds whenever it is read: at each step."""
    ticks = itertools.count()
    monkeypatch.setattr(runs, "time", types.SimpleNamespace(monotonic=lambda: seconds * next(ticks)))


def read_until(stream, pattern):
    """The bytes that a process writes up to what matches, which must come before its end and without long pauses."""
    seen = b""
    while not re.search(pattern, seen):
        ready, *_ = select.select([stream], [], [], 120)
        part = os.read(stream.fileno(), 2**16) if ready else b""  # leaves nothing in the stream's own buffer
        assert part, seen.decode(errors="replace")
        seen += part
    return seen


class Photos:
    """Stands for a cache of three photos in colour."""

    names = ["a", "b", "c"]

    def __getitem__(self, index):
        return synthetic_colour_image(11, index, 200)


def drawn_photo(width, height, seed=0):
    """(height, width, 3) uint8: three drawn images, their differences halved, as the channels of photos are alike."""
    channels = np.stack([synthetic_image(9, seed + i, max(width, height))[:height, :width] for i in range(3)], axis=2)
    return (channels // 2 + channels[:, :, :1] // 2).astype(np.uint8)


def pixelated(pixels, x, y, width, height, size):
    """A copy of a photo with a rectangle of block means."""
    result = pixels.copy()
    area = slice(y, y + height), slice(x, x + width)
    result[area] = np.floor(block_means(result[area], size))
    return result


RECTANGLES = [  # a photo's width and height; a rectangle in it and the side of its blocks
    (200, 150, (60, 40, 80, 60, 9)),
    (150, 200, (0, 0, 31, 46, 15)),
    (180, 180, (100, 90, 80, 90, 25)),
    (90, 80, (30, 20, 25, 22, 3)),
    (120, 100, (20, 30, 49, 41, 8)),  # the last column and row are one pixel wide
    (300, 260, (50, 60, 200, 150, 40)),
]
