"""--score: submissions, compressed or damaged."""

import bz2
import gzip
import lzma
import zipfile

import numpy as np
import pytest

from depixelation.commands.score import read_submission
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
