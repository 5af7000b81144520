"""The challenge's submission file: a list of 1-D uint8 arrays as bytes (`serialize`) and back (`deserialize`).

Format, all integers big-endian and unsigned: one byte L, the number of bytes of a length field; then for each array
its length minus one in L bytes, followed by its bytes. [1, 2, 3] and [5] give 01 | 02 01 02 03 | 00 05.
"""

import os

import numpy as np

from utils import atomic_write


def serialize(submission, path_or_filehandle):
    """Write a submission.

    submission: sequence of non-empty 1-D uint8 arrays, one per test image, in the order of the test set.
    path_or_filehandle: a path, which is replaced as a whole or not at all, or a binary file open for writing.
    Raises TypeError for a wrong type or dtype, ValueError for a wrong rank or an empty array or list.
    """
    if not isinstance(submission, (list, tuple)):
        raise TypeError(f"submission must be a list of arrays, not {type(submission).__name__}")
    for i, array in enumerate(submission):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"submission[{i}] must be a NumPy array, not {type(array).__name__}")
        if array.dtype != np.uint8:
            raise TypeError(f"submission[{i}] must have dtype uint8, not {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"submission[{i}] must be 1-D, not {array.ndim}-D")
        if array.size == 0:
            raise ValueError(f"submission[{i}] is empty: its length minus one cannot be written")
    if not submission:
        raise ValueError("submission is empty: there is nothing to write")
    if not hasattr(path_or_filehandle, "write"):
        with atomic_write(path_or_filehandle) as file:
            return serialize(submission, file)
    # At least 1: with a zero-byte length field (all arrays of one element) the file could not be read back.
    length_bytes = max(1, ((max(map(len, submission)) - 1).bit_length() + 7) // 8)
    path_or_filehandle.write(bytes([length_bytes]))
    for array in submission:
        path_or_filehandle.write((len(array) - 1).to_bytes(length_bytes, "big"))
        path_or_filehandle.write(array.tobytes())


def deserialize(path_or_filehandle):
    """Read a submission: a list of 1-D uint8 arrays, in the order in which they were written.

    path_or_filehandle: a path, or a binary file open for reading.
    Raises ValueError for an empty, truncated or otherwise malformed file.
    """
    if not hasattr(path_or_filehandle, "read"):
        with open(path_or_filehandle, "rb") as file:
            return deserialize(file)
    data = path_or_filehandle.read()
    name = getattr(path_or_filehandle, "name", None)
    where = f"{os.fspath(name)}: " if isinstance(name, (str, os.PathLike)) else ""
    if not data:
        raise ValueError(f"{where}the submission is empty")
    length_bytes = data[0]
    if length_bytes == 0:
        raise ValueError(f"{where}the length field has 0 bytes, so the lengths of the arrays are unknown")
    submission, position = [], 1
    while position < len(data):
        start = position + length_bytes
        length = int.from_bytes(data[position:start], "big") + 1
        if start + length > len(data):
            raise ValueError(f"{where}the submission is truncated in array {len(submission)}")
        submission.append(np.frombuffer(data, np.uint8, length, start).copy())
        position = start + length
    if not submission:
        raise ValueError(f"{where}the submission holds no arrays")
    return submission
