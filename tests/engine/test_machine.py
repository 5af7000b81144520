"""What machines do to a program: full disks, killed processes, closed terminals, several runs at once."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from conftest import contents, some_photos

from datasets import CachedPixelationDataset
from depixelation.engine.processes import Interrupts, lasting_output
from depixelation.images import cache as caches
from depixelation.images import photos
from utils import UserError, _replace, atomic_write

# ------------------------------------------------------------------------------------------------ files


def write_second(path):
    with atomic_write(path) as file:
        file.write(b"second")


def test_two_writers_of_one_file(tmp_path):
    """The second is told; what the first has begun is not spoilt."""
    path = tmp_path / "a.bin"
    with ProcessPoolExecutor(1) as pool, atomic_write(path) as file:
        file.write(b"first")
        with pytest.raises(UserError, match="held by another run"):
            pool.submit(write_second, path).result()
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["a.bin"]


def test_a_file_that_is_read_elsewhere_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    """Windows refuses to replace a file that is open elsewhere."""
    calls, replace = [], os.replace

    def refuse(*paths):
        calls.append(paths)
        if len(calls) < 3:
            raise PermissionError(13, "Access is denied", paths[1])
        return replace(*paths)

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(sys, "platform", "win32")
    (tmp_path / "a.tmp").write_bytes(b"first")
    _replace(tmp_path / "a.tmp", tmp_path / "a.bin")
    assert len(calls) == 3 and (tmp_path / "a.bin").read_bytes() == b"first"


def test_interrupted_while_workers_are_started_none_is_left(tmp_path, monkeypatch):
    """Of a pool that has started some, but not yet the thread that ends them."""

    def interrupt(executor):
        assert executor._processes
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.process._ExecutorManagerThread", interrupt)
    before = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        caches.open_cache("synthetic", str(tmp_path), 0, 100)
    assert multiprocessing.active_children() == before and not os.listdir(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    "command, path",
    [
        ("--predict --model model.pt --test_set test.pkl --submission new.bin", "new.bin"),
        ("--zip new.zip --model model.pt", "new.zip"),
        ("--make_test_set new", "new"),
        ("--epochs 1 --name new", "new.last.pt"),
        ("--evaluate model.pt --name new", "new_evaluation"),
        ("--epochs 1 --name new --cache_dir new", "new"),
    ],
)
def test_full_disk(predict, run, refused, tmp_path, command, path):
    """A limit on the size of files fails where a full disk does. No part of a file is left."""
    import resource

    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        status = run(*command.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    refused(status, path)
    assert all(path in before or path.stat().st_size <= 200 for path in tmp_path.rglob("*") if path.is_file())
    assert not [
        name for name in contents(tmp_path) if name.suffix in (".tmp", ".writing", ".pt") and name not in before
    ]


# ------------------------------------------------------------------------------------------------ photos and caches


def test_photos_that_cannot_be_read_now_are_not_remembered_as_unreadable(run, refused, tmp_path, monkeypatch):
    some_photos(tmp_path / "photos", 6)
    read = photos._read_photo

    def failing(error):
        def read_photo(source, name):
            if name == "003.jpg":
                raise error
            return read(source, name)

        monkeypatch.setattr(photos, "_read_photo", read_photo)

    for error, word in ((OSError(5, "Input/output error"), "Input/output"), (MemoryError(), "memory")):
        failing(error)
        refused(run("--epochs", "1", "--images", "photos"), word)
    failing(PermissionError(13, "Permission denied"))
    assert len(caches.open_cache("photos", str(tmp_path / "other"), 0, 0)) == 5  # of its own: left out
    monkeypatch.setattr(photos, "_read_photo", read)
    assert len(caches.open_cache("photos", str(tmp_path / "again"), 0, 0)) == 6


def test_workers_that_are_killed(run, refused, tmp_path, monkeypatch):
    """As the system does for want of memory."""
    some_photos(tmp_path / "photos", 3)
    with monkeypatch.context() as patch:
        patch.setattr(photos, "_read_photo", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        refused(run("--epochs", "1", "--images", "photos"), "workers")
    monkeypatch.setattr(CachedPixelationDataset, "_augment", lambda *a: os.kill(os.getpid(), signal.SIGKILL))
    refused(run("--epochs", "1", "--workers", "1"), "workers")


def test_lack_of_memory(run, refused, monkeypatch):
    def allocate(*arguments):
        torch.empty(2**50)

    def fail(*arguments):
        raise MemoryError

    def fill(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for function in (allocate, fail, fill):
        monkeypatch.setattr("depixelation.mosaics.rectangle_tasks.training_loss", function)
        refused(run("--epochs", "1", "--name", function.__name__), "batch_size", "memory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipes_and_links_among_the_photos(run, refused, tmp_path, capsys):
    some_photos(tmp_path / "photos", 6)
    os.mkfifo("photos/x.jpg")
    os.symlink("y.jpg", "photos/y.jpg")
    os.symlink("nowhere", "photos/z.jpg")
    os.symlink("..", "photos/up")
    cache = caches.open_cache("photos", str(tmp_path / "cache"), 0, 0)
    assert len(cache) == 6 and sorted(name for name, _ in cache.left_out) == ["x.jpg", "y.jpg", "z.jpg"]
    capsys.readouterr()
    refused(run("--pixelate", "photos/x.jpg"), "no plain file")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_runs_that_prepare_the_same_images_share_a_cache(tmp_path):
    """One of other images takes its place; a run that has the old one open reads on."""
    folder = str(tmp_path)

    def start(seed):
        """open_cache in a process of its own. Returns its pid."""
        pid = os.fork()
        if not pid:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            with contextlib.suppress(BaseException):
                caches.open_cache("synthetic", folder, seed, 64)
                os._exit(0)
            os._exit(1)
        return pid

    for pid in [start(1), start(1), start(1)]:
        assert os.waitpid(pid, 0)[1] == 0
    assert len(os.listdir(folder)) == 1
    first = caches.open_cache("synthetic", folder, 1, 64)
    image = first[63].copy()
    assert os.waitpid(start(2), 0)[1] == 0
    assert len(os.listdir(folder)) == 1 and not os.path.exists(first.path)
    assert (first[63] == image).all() and image.any()


# ------------------------------------------------------------------------------------------------ signals and terminals


def test_a_closed_terminal_costs_no_state(monkeypatch):
    def broken(*arguments):
        raise BrokenPipeError(32, "Broken pipe")

    with Interrupts() as interrupts:
        monkeypatch.setattr(os, "write", broken)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()
        assert interrupts.received == signal.SIGTERM


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_hangups_are_noted_unless_ignored(handler):
    before, noted = signal.signal(signal.SIGHUP, handler), handler != signal.SIG_IGN
    try:
        with Interrupts(loud=False) as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert interrupts.received == (signal.SIGHUP if noted else 0)
            with pytest.raises(KeyboardInterrupt) if noted else contextlib.nullcontext():
                signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outputs_that_are_gone_or_cannot_show_a_name(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="ascii", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting_output():
            print("é\udcff", flush=True)
            assert os.read(reader, 100) == b"\\xe9\\udcff\n"
            os.close(reader)
            print("nobody reads this", flush=True)


def test_pictures_that_cannot_be_written_stop_no_training(run, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError(28, "No space left on device", "losses/default_samples.png")

    monkeypatch.setattr("main.plot_sheet", fail)
    assert run("--epochs", "2") == 0
    assert "warning: losses/default_samples.png: No space left" in capsys.readouterr().err
    assert os.path.exists("models/default.pt")


def test_names_that_are_no_text(run, tmp_path, model):
    """File names may be any bytes; they come to tables and figures."""
    name = os.fsdecode(b"m\xff.pt")
    try:
        shutil.copy(model, name)
    except OSError:
        pytest.skip("this file system wants Unicode")
    assert run("--evaluate", name) == 0
    with open("losses/default_evaluation.csv", encoding="utf-8") as file:
        assert "m\\udcff.pt" in file.read()
