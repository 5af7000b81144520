"""However a program ends, no process that it started is left, and it is not waited for."""

import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
from conftest import TINY, some_photos, start_process

import main as entry
from datasets import CachedPixelationDataset
from depixelation.engine.processes import check_open_files
from depixelation.images import cache as caches
from depixelation.images import photos
from utils import UserError


@pytest.fixture
def left():
    """Calls for the processes that were started since, and ends them."""
    before = multiprocessing.active_children()

    def started_since():
        processes = [process for process in multiprocessing.active_children() if process not in before]
        for process in processes:
            process.kill()
        return processes

    yield started_since
    started_since()


def fail(*arguments):
    raise LookupError("a mistake of the program")


def test_after_a_failure_in_the_training(run, left, monkeypatch):
    monkeypatch.setattr("depixelation.mosaics.rectangle_tasks.training_loss", fail)
    with pytest.raises(LookupError):
        run("--epochs", "1", "--workers", "2")
    assert not left()


def test_after_a_failure_in_a_worker(run, left, monkeypatch):
    monkeypatch.setattr(CachedPixelationDataset, "_augment", fail)
    with pytest.raises(LookupError):
        run("--epochs", "1", "--workers", "2")
    assert not left()


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(5, "Input/output error", "photos.npy"), "photos.npy: Input/output error"),
        (OSError("nothing is known of it"), "file: nothing is known of it"),
        (OSError(24, "Too many open files"), "workers: the system allows too few open files"),
        (UserError("images: two\nlines"), "images: two lines"),
    ],
)
def test_an_error_of_a_worker_is_one_line(run, left, monkeypatch, capsys, error, line):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(CachedPixelationDataset, "_augment", fail)
    assert run("--epochs", "1", "--workers", "2") == 2
    (told,) = [part for part in capsys.readouterr().err.splitlines() if part.strip() and "%" not in part]
    assert told.startswith(f"main.py: error: {line}")
    assert not left()


def test_numbers_that_become_too_large(run, refused, left):
    refused(run("--epochs", "1", "--workers", "2", "--learning_rate", "1e300"), "learning_rate", "smaller")
    assert not left() and not [name for name in os.listdir("models") if name != "default.last.pt"]


@pytest.mark.parametrize(
    "error, word",
    [
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible"), "ulimit -n"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(12, "Cannot allocate memory"), "memory"),
    ],
)
def test_processes_that_cannot_be_started(run, refused, left, monkeypatch, error, word):
    """The second worker cannot."""
    started, start = [], multiprocessing.Process.start

    def start_one(process):
        if started:
            raise error
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.Process, "start", start_one)
    refused(run("--epochs", "1", "--workers", "2"), word)
    assert started and not left()


def test_too_few_open_files(monkeypatch):
    resource = pytest.importorskip("resource")
    limits, raised = (60, 60), []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    with pytest.raises(UserError, match="workers: 8 may need 120 open files.* 60 .*use --workers 3"):
        check_open_files(8)
    check_open_files(3)
    assert not raised
    limits = 60, 4096
    check_open_files(8)
    assert raised == [(120, 4096)]


def test_a_worker_of_several_is_killed(tmp_path, left, monkeypatch):
    """While images are prepared. The pool would send the others a SIGTERM, and wait for them."""
    some_photos(tmp_path / "photos", 3)
    read, shutdown, alive = photos._read_photo, ProcessPoolExecutor.shutdown, []

    def read_photo(source, name):
        if name == "001.jpg":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(source, name)

    def shut_down(pool, *arguments, **options):
        alive.extend(left())
        shutdown(pool, *arguments, **options)

    monkeypatch.setattr(caches, "CHUNK", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(photos, "_read_photo", read_photo)
    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", shut_down)
    with pytest.raises(caches.BrokenExecutor):
        caches.open_cache(str(tmp_path / "photos"), str(tmp_path / "cache"), 0, 0)
    for process in alive:  # one may still be ending when the pool is shut down
        process.join()
    assert not left() and not os.listdir(tmp_path / "cache")


def _end_after_a_fork(arguments):
    """main(), ended by a SIGTERM where Python drops exceptions."""
    multiprocessing.set_start_method("fork", force=True)
    signals = [signal.SIGTERM]
    os.register_at_fork(after_in_parent=lambda: signals and signal.raise_signal(signals.pop()))
    sys.exit(entry.main(arguments))


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="needs fork")
def test_a_sigterm_while_workers_are_forked_is_not_lost(tmp_path):
    arguments = [*TINY, "--epochs", "1", "--output_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache")]
    process = start_process(_end_after_a_fork, [*arguments, "--synthetic_images", "64"])
    process.join(100)
    assert process.exitcode == 130 and not os.listdir(tmp_path / "cache")
