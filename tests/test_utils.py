"""Files: written at once or not at all, and read with care."""

import os

import pytest
import torch

from utils import UserError, atomic_write, load_checkpoint


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
