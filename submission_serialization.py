"""The challenge's files: the submission, and the test pickle (`load_test_set`).

A submission is a list of 1-D uint8 arrays, written as bytes (`serialize`) and read back (`deserialize`). All integers
are big-endian and unsigned: one byte L, the number of bytes of a length field; then for each array its length minus one
in L bytes, followed by its bytes. [1, 2, 3] and [5] give 01 | 02 01 02 03 | 00 05.
"""

import io
import os
import pickle

import numpy as np

from utils import UserError, atomic_write, open_plain


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
    length_bytes = _length_bytes(submission)
    path_or_filehandle.write(bytes([length_bytes]))
    for array in submission:
        path_or_filehandle.write((len(array) - 1).to_bytes(length_bytes, "big"))
        path_or_filehandle.write(array.tobytes())


def _length_bytes(submission):
    """At least 1: with a length field of 0 bytes (all arrays of one element) the file could not be read back."""
    return max(1, ((max(map(len, submission)) - 1).bit_length() + 7) // 8)


def deserialize(path_or_filehandle, most=None):
    """Read a submission: a list of 1-D uint8 arrays, in the order in which they were written.

    path_or_filehandle: a path, or a binary file open for reading. most: arrays that it may hold; None: any number.
    Raises ValueError for an empty, truncated or otherwise malformed file, and for more arrays.
    """
    if not hasattr(path_or_filehandle, "read"):
        with open(path_or_filehandle, "rb") as file:
            return deserialize(file, most)
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
        if len(submission) == most:
            raise ValueError(f"{where}the submission holds more than {most:,} arrays")
        submission.append(np.frombuffer(data, np.uint8, length, start).copy())
        position = start + length
    if not submission:
        raise ValueError(f"{where}the submission holds no arrays")
    if length_bytes != _length_bytes(submission):  # `serialize` does not write this: some bytes were changed
        raise ValueError(
            f"{where}the length field has {length_bytes} bytes, but {_length_bytes(submission)} are enough"
        )
    return submission


class _ArrayUnpickler(pickle._Unpickler):
    """Reads uint8 and bool arrays in plain containers and nothing else: a file cannot make it run code.

    This is pickle's Python implementation without the opcodes that such arrays do not need. The C implementation is
    unsafe: a file of a few bytes can make it fill memory (memo indexes) or compute forever (hashes of nested tuples).
    """

    def find_class(self, module, name):
        package = module.replace("numpy._core", "numpy.core")  # NumPy 2 renamed it
        try:
            return _CALLABLES[package, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {ascii(module)[1:-1]}.{ascii(name)[1:-1]}") from None

    def load_build(self):
        """Set an array's state: shape, dtype and bytes. A dtype's state adds nothing, so skip it."""
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, np.dtype):
            return
        _, shape, dtype, fortran, data = state
        if type(built) is not np.ndarray or dtype not in (np.uint8, np.bool_) or type(data) is not bytes:
            raise pickle.UnpicklingError("it holds arrays that are neither uint8 nor bool")
        np.frombuffer(data, dtype).reshape(shape)  # raises where they do not fit
        built.__setstate__((1, shape, dtype, bool(fortran), data))

    def load_reduce(self):
        arguments, function = self.stack.pop(), self.stack[-1]
        if not any(function is allowed for allowed in (_empty_array, _array_from_buffer, _dtype)):
            raise pickle.UnpicklingError("it calls a function that does not make arrays")
        self.stack[-1] = function(*arguments)

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set(((key, value),))

    def load_setitems(self):
        items = self.pop_mark()
        self._set(zip(items[::2], items[1::2], strict=True))

    def _set(self, items):
        for key, value in items:
            if type(self.stack[-1]) is not dict or type(key) is not str:
                raise pickle.UnpicklingError("it has keys that are not text")
            self.stack[-1][key] = value

    def load_bytearray8(self):
        self.stack.append(self.read(int.from_bytes(self.read(8), "little")))  # read() allocates no more than is there

    _OPCODES = """PROTO FRAME MARK STOP POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
        SHORT_BINBYTES BINBYTES BINBYTES8 SHORT_BINUNICODE BINUNICODE BINUNICODE8
        EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT
        GLOBAL STACK_GLOBAL MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET""".split()
    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES}
    dispatch |= {pickle.BUILD[0]: load_build, pickle.REDUCE[0]: load_reduce, pickle.BYTEARRAY8[0]: load_bytearray8}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}


def _empty_array(kind, shape, dtype):
    return np.ndarray((0,), np.uint8)  # the array's state, which follows, brings shape and dtype


def _array_from_buffer(buffer, dtype, shape, order):
    if dtype not in (np.uint8, np.bool_):
        raise pickle.UnpicklingError("it holds arrays that are neither uint8 nor bool")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _dtype(name, *flags):
    if name not in ("u1", "b1"):
        raise pickle.UnpicklingError(f"it holds arrays of {ascii(name)[:20]}, which are neither uint8 nor bool")
    return np.dtype(name)


_CALLABLES = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("numpy", "ndarray"): np.ndarray,  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _dtype,
}


def load_test_set(path):
    """(pixelated_images, known_arrays) of a test pickle: lists of (1, H, W) arrays, uint8 and bool.

    Raises UserError if the file is missing, is not such a pickle, or asks for anything but arrays.
    """
    try:
        with open_plain(path) as file:
            content = io.BytesIO(file.read())
        data = _ArrayUnpickler(content).load()
    except OSError as error:
        raise UserError(
            f"test_set: {path}: {error.strerror}; name the challenge's test pickle with --test_set FILE"
        ) from None
    except Exception as error:  # a broken pickle can raise anything
        reason = f"its instructions make no sense ({type(error).__name__})"
        if isinstance(error, (EOFError, pickle.UnpicklingError)):
            reason = str(error).partition("\n")[0][:200] or "it ends too early"
        raise UserError(f"test_set: {path} is not a test pickle: {reason}") from None
    wrong = f"test_set: {path} is not a test pickle:"
    if not isinstance(data, dict) or not {"pixelated_images", "known_arrays"} <= data.keys():
        raise UserError(f"{wrong} it must be a dict with pixelated_images and known_arrays")
    images, known = data["pixelated_images"], data["known_arrays"]
    if (
        not isinstance(images, (tuple, list))
        or not isinstance(known, (tuple, list))
        or len(images) != len(known)
        or not len(images)
    ):
        raise UserError(f"{wrong} pixelated_images and known_arrays must be tuples of equal length, not empty")
    for i, (image, mask) in enumerate(zip(images, known)):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != 1:
            raise UserError(f"{wrong} pixelated_images[{i}] must be a uint8 array of shape (1, H, W)")
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != image.shape:
            raise UserError(f"{wrong} known_arrays[{i}] must be a bool array of the image's shape {image.shape}")
        if mask.all():
            raise UserError(f"{wrong} known_arrays[{i}] is True everywhere, so there is nothing to predict")
        y, x = np.nonzero(~mask[0])
        if mask[0, y.min() : y.max() + 1, x.min() : x.max() + 1].any():
            raise UserError(f"{wrong} what known_arrays[{i}] leaves out is not a rectangle")
    return list(images), list(known)
