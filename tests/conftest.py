import collections
import multiprocessing
import os
import pickle
import shutil
import signal
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks are tiny here; before PyTorch is imported, for processes too
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import main as entry  # noqa: E402
from datasets import prepare_image  # noqa: E402
from synthetic import synthetic_image  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background


def start_main(arguments, output=None, environment=None, method=None):
    """main() in a process of its own, forked from one that has imported all, which saves the time of it.

    output: a file for what it prints. method: how it starts processes itself. Returns the multiprocessing.Process,
    started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["main"])
    process = context.Process(target=_call_main, args=(arguments, output, environment or {}, method))
    process.start()
    return process


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


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 12 folders of 5 JPEGs."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(60):
        save_photo(folder / f"{i // 5:03}" / f"{i:07}.jpg", i)
    return folder


TINY = ["--network", "BasicCNN", "--network_options", '{"channels": 8, "layers": 2}', "--synthetic_images", "40"]
TINY += ["--device", "cpu", "--precision", "float32", "--batch_size", "16"]


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder with a trained run, default, and the cache of its images."""
    folder = tmp_path_factory.mktemp("shared")
    assert entry.main([*TINY, "--output_dir", str(folder), "--cache_dir", str(folder / "cache"), "--epochs", "1"]) == 0
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


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
