"""--score: submissions, compressed or damaged."""

import bz2
import gzip
import lzma
import os
import zipfile

import numpy as np
import pytest

from depixelation.commands import score
from depixelation.commands.score import read_submission, root_mean_square
from submission_serialization import serialize
from utils import UserError


def test_compressed_and_broken_submissions(run, tmp_path, capsys):
    arrays = [np.arange(n, dtype=np.uint8) for n in (16, 100, 7)]
    serialize(arrays, tmp_path / "plain.bin")
    data = (tmp_path / "plain.bin").read_bytes()
    for name, module in (("a.gz", gzip), ("a.bz2", bz2), ("a.xz", lzma)):
        (tmp_path / name).write_bytes(module.compress(data))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("submission.bin", data)
    for name in ("plain.bin", "a.gz", "a.bz2", "a.xz", "a.zip"):
        assert all(map(np.array_equal, read_submission(tmp_path / name), arrays))
    shifted = [array + np.uint8(3) for array in arrays]
    serialize(shifted, tmp_path / "shifted.bin")
    assert run("--score", str(tmp_path / "shifted.bin"), str(tmp_path / "a.gz")) == 0
    assert "score 3.000000 on 3 images" in capsys.readouterr().out
    serialize(arrays[:2], tmp_path / "short.bin")
    serialize([*arrays[:2], arrays[2][:3]], tmp_path / "other.bin")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        file.writestr("a", data)
        file.writestr("b", data)
    for extension in ("gz", "bz2", "xz", "zip"):
        content = (tmp_path / f"a.{extension}").read_bytes()
        (tmp_path / f"cut.{extension}").write_bytes(content[: len(content) // 2])
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**28 + 2)))
    bad = ["short.bin", "other.bin", "two.zip", "cut.gz", "cut.bz2", "cut.xz", "cut.zip", "bomb.gz", "missing.bin"]
    for name in bad:
        assert run("--score", str(tmp_path / name), str(tmp_path / "plain.bin")) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
    with pytest.raises(UserError):
        read_submission(tmp_path)


def test_damaged_compressed_submissions(tmp_path):
    """Each is refused, or, where a checksum does not cover the damage, read as something."""
    serialize([np.arange(n, dtype=np.uint8) for n in (16, 100, 7)], tmp_path / "plain.bin")
    data = (tmp_path / "plain.bin").read_bytes()
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("submission.bin", data)
    whole = [(tmp_path / "zip").read_bytes()] + [module.compress(data) for module in (gzip, bz2, lzma)]
    rng, refused = np.random.default_rng(0), 0
    for i in range(1200):
        damaged = bytearray(whole[i % 4])
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            assert isinstance(read_submission(tmp_path / "damaged"), list)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 900


def test_what_a_submission_may_hold_is_limited(run, tmp_path, monkeypatch, capsys):
    """A small file may unpack to many arrays, each of which takes more memory than its bytes."""
    monkeypatch.setattr(score, "MAX_ARRAYS", 1000)
    for count in (1000, 1001):
        serialize([np.zeros(1, np.uint8)] * count, tmp_path / f"{count}.bin")
        (tmp_path / f"{count}.xz").write_bytes(lzma.compress((tmp_path / f"{count}.bin").read_bytes()))
    assert run("--score", str(tmp_path / "1000.xz"), str(tmp_path / "1000.bin")) == 0
    for name in ("1001.bin", "1001.xz"):
        assert run("--score", str(tmp_path / name), str(tmp_path / "1000.bin")) == 2
        error = capsys.readouterr().err
        assert name in error and "more than 1,000 arrays" in error and error.count("\n") == 1


def test_long_arrays_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr(score, "AT_ONCE", 7)
    a, b = np.random.default_rng(0).integers(0, 256, (2, 100), dtype=np.uint8)
    assert root_mean_square(a, b) == pytest.approx(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(run, tmp_path, refused):
    os.mkfifo(tmp_path / "pipe")
    refused(run("--score", str(tmp_path / "pipe"), str(tmp_path / "pipe")), "pipe", "is no plain file")
