"""Files: written at once or not at all, and read with care."""

import os

import pytest
import torch

from utils import UserError, atomic_write, load_checkpoint, locked


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["file"]


def test_a_full_disk_names_the_file(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "file") as file:
        with open("/dev/full", "wb", buffering=0) as full:
            file.write(b"x")
            full.write(b"x")
    assert error.value.filename == str(tmp_path / "file") and not os.listdir(tmp_path)


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Else a power cut may leave an empty file in the place of the old one."""
    steps = []

    def noted(name, function):
        return lambda *arguments: steps.append(name) or function(*arguments)

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    with atomic_write(tmp_path / "file") as file:
        file.write(b"x")
    assert steps == ["fsync", "replace"]


def test_a_lock_is_that_of_the_file_that_others_see(tmp_path, monkeypatch):
    """Its last holder may delete it between opening and locking."""
    fcntl = pytest.importorskip("fcntl")
    path, lock, calls = tmp_path / "a.lock", fcntl.lockf, []

    def deleted(file, operation):
        calls.append(operation)
        if len(calls) == 1:
            path.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "lockf", deleted)
    with locked(str(path), "wait"):
        assert path.exists() and len(calls) == 2


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_checkpoints_that_are_none(tmp_path):
    torch.save({"weights": {}}, tmp_path / "other.pt")
    torch.save({"config": Hostile(), "weights": {}}, tmp_path / "hostile.pt")
    (tmp_path / "text.pt").write_text("x")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("other.pt", "hostile.pt", "text.pt", "empty.pt", "missing.pt"):
        with pytest.raises(UserError, match=f"{name}.*; train one") as error:
            load_checkpoint(str(tmp_path / name), "train one")
        assert "\n" not in str(error.value)
    assert not os.path.exists("executed")
