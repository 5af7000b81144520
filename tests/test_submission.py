"""The challenge's file format, byte for byte, and files that are not in it."""

import io
import random

import numpy as np
import pytest

from submission_serialization import deserialize, serialize


def as_bytes(arrays):
    file = io.BytesIO()
    serialize([np.array(values, dtype=np.uint8) for values in arrays], file)
    return file.getvalue()


@pytest.mark.parametrize(
    "arrays, expected",
    [
        ([[1, 2, 3], [5]], "01 02 01 02 03 00 05"),
        ([[9]], "01 00 09"),  # the course's script writes a length field of 0 bytes here, which cannot be read back
        ([[7] * 256], "01 ff" + " 07" * 256),
        ([[7] * 257, [1]], "02 01 00" + " 07" * 257 + " 00 00 01"),
    ],
)
def test_bytes_both_ways(arrays, expected):
    data = bytes.fromhex(expected)
    assert as_bytes(arrays) == data
    assert [array.tolist() for array in deserialize(io.BytesIO(data))] == arrays
    assert all(array.dtype == np.uint8 and array.ndim == 1 for array in deserialize(io.BytesIO(data)))


def test_path_and_order(tmp_path):
    rng = np.random.default_rng(0)
    submission = [rng.integers(0, 256, n, dtype=np.uint8) for n in rng.integers(16, 1025, 200)]
    serialize(submission, tmp_path / "submission.bin")
    assert all(map(np.array_equal, deserialize(tmp_path / "submission.bin"), submission))
    assert [path.name for path in tmp_path.iterdir()] == ["submission.bin"]


@pytest.mark.parametrize(
    "submission, error",
    [
        ([np.zeros(3, np.int64)], TypeError),
        ([np.zeros(3)], TypeError),
        ([[1, 2]], TypeError),
        (np.zeros(3, np.uint8), TypeError),
        ([np.zeros((1, 3), np.uint8)], ValueError),
        ([np.zeros(0, np.uint8)], ValueError),
        ([], ValueError),
    ],
)
def test_wrong_submission_leaves_the_old_file(tmp_path, submission, error):
    path = tmp_path / "submission.bin"
    path.write_bytes(b"old")
    with pytest.raises(error):
        serialize([*submission] if isinstance(submission, list) else submission, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_truncated_and_empty_files():
    data = as_bytes([[1, 2, 3], list(range(200)), [5]])
    whole = {1, 1 + 4, 1 + 4 + 201}  # after the header and after each array
    for end in range(len(data)):
        if end in whole and end > 1:
            assert len(deserialize(io.BytesIO(data[:end]))) < 3
        else:
            with pytest.raises(ValueError):
                deserialize(io.BytesIO(data[:end]))
    with pytest.raises(ValueError, match="0 bytes"):
        deserialize(io.BytesIO(b"\0\0\0"))


def test_mutated_files_are_refused_or_read_without_loss():
    data, rng, refused = as_bytes([list(range(n)) for n in (3, 200, 1, 90)]), random.Random(0), 0
    for _ in range(2000):
        mutated = bytearray(data[: rng.randint(1, len(data))])
        for _ in range(rng.randint(0, 3)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        try:
            arrays = deserialize(io.BytesIO(bytes(mutated)))
        except ValueError:
            refused += 1
        else:
            assert sum(len(a) + mutated[0] for a in arrays) + 1 == len(mutated)
    assert 0 < refused < 2000
