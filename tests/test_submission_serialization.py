"""The challenge's files: the submission byte for byte, the test pickle, and files that are neither."""

import io
import os
import pickle
import random
import resource
import struct
import time

import numpy as np
import pytest
import torch

from submission_serialization import deserialize, load_test_set, serialize
from utils import UserError


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


def test_test_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 256, (1, 8, 8), dtype=np.uint8) for _ in range(3))
    images = *images[:2], np.asfortranarray(images[2])
    known = tuple(np.arange(64).reshape(1, 8, 8) % 8 > i for i in range(3))

    def write(data, protocol=4):
        with open("test.pkl", "wb") as file:
            pickle.dump(data, file, protocol)

    for protocol in (3, 5, 4):
        write({"pixelated_images": images, "known_arrays": known}, protocol)
        assert all(map(np.array_equal, load_test_set("test.pkl")[0], images))
    data = open("test.pkl", "rb").read()
    renamed = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")  # as NumPy 1 writes it
    assert renamed != data
    with open("test.pkl", "wb") as file:
        file.write(b"\x80\x04" + renamed[11:])  # without the frame, whose length has changed
    assert all(map(np.array_equal, load_test_set("test.pkl")[1], known))

    for wrong in (
        [images, known],
        {"pixelated_images": images},
        {"pixelated_images": images, "known_arrays": known[:2]},
        {"pixelated_images": (), "known_arrays": ()},
        {"pixelated_images": images, "known_arrays": images},
        {"pixelated_images": known, "known_arrays": known},
        {"pixelated_images": images, "known_arrays": (known[0] | True,) * 3},
        {"pixelated_images": images, "known_arrays": (known[0] ^ (np.arange(64) == 40).reshape(1, 8, 8),) * 3},
        {"pixelated_images": images, "known_arrays": tuple(k.reshape(1, 4, 16) for k in known)},
        {"pixelated_images": {0: images[0]}, "known_arrays": {0: known[0]}},
        {"pixelated_images": tuple(i[0] for i in images), "known_arrays": tuple(k[0] for k in known)},
    ):
        write(wrong)
        with pytest.raises(UserError, match="test.pkl is not a test pickle"):
            load_test_set("test.pkl")
    for content in (b"", data[: len(data) // 2], b"no pickle"):
        with open("test.pkl", "wb") as file:
            file.write(content)
        with pytest.raises(UserError, match="test.pkl is not a test pickle"):
            load_test_set("test.pkl")
    with pytest.raises(UserError, match="missing.pkl"):
        load_test_set("missing.pkl")


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CREATE = "open('executed', 'w')"
CALLS = (  # (module, name, arguments)
    ("os", "system", "touch executed"),
    ("posix", "system", "touch executed"),
    ("nt", "system", "touch executed"),
    ("os", "mkdir", "executed"),
    ("subprocess", "getoutput", "touch executed"),
    ("builtins", "eval", CREATE),
    ("builtins", "exec", CREATE),
    ("__builtin__", "eval", CREATE),
    ("builtins", "open", "executed", "w"),
    ("builtins", "__import__", "antigravity"),
    ("builtins", "getattr", "x", "upper"),
    ("operator", "attrgetter", "system"),
    ("functools", "partial", "x"),
    ("importlib", "import_module", "os"),
    ("runpy", "run_path", "x.py"),
    ("pickle", "loads", "x"),
    ("torch", "load", "x.pt"),
    ("torch.hub", "load", "a/b", "c"),
    ("torch._utils", "_rebuild_tensor_v2", "x"),
    ("torch.utils.collect_env", "run", "touch executed"),
    ("numpy", "load", "x.npy"),
    ("numpy", "fromfile", "x"),
    ("numpy", "memmap", "executed", "uint8", "w+"),
    ("numpy.testing._private.utils", "runstring", CREATE, "x"),
    ("numpy.core.multiarray", "array", "x"),
    ("numpy.core.multiarray.os", "system", "touch executed"),
)


def hostile_pickles():
    """{name: bytes}: none may execute anything, exhaust memory or compute for long."""

    def text(value):
        return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()

    def call(module, name, *arguments):
        code = b"(" + b"".join(text(argument) for argument in arguments) + b"t"
        return pickle.GLOBAL + f"{module}\n{name}\n".encode() + code + pickle.REDUCE

    cases = {f"{module}.{name}": call(module, name, *arguments) for module, name, *arguments in CALLS}
    cases["dotted name"] = pickle.PROTO + b"\x04" + text("numpy") + text("ndarray.tofile") + pickle.STACK_GLOBAL
    cases["persistent id"] = b"Pexecuted\n"
    cases["persistent id, binary"] = text("executed") + pickle.BINPERSID
    for code, size in ((pickle.EXT1, 1), (pickle.EXT2, 2), (pickle.EXT4, 4)):
        cases[f"extension code of {size} bytes"] = code + b"\x01" + bytes(size - 1)
    cases["INST"] = b"(" + text("touch executed") + b"ios\nsystem\n"
    cases["OBJ"] = b"(cos\nsystem\n" + text("touch executed") + pickle.OBJ
    cases["NEWOBJ"] = b"cnumpy\nndarray\n)" + pickle.NEWOBJ
    cases["out-of-band buffer"] = pickle.NEXT_BUFFER
    ndarray = b"cnumpy\nndarray\n"
    cases["attributes of a class"] = ndarray + b"}" + text("tofile") + text("x") + b"sb"
    cases["array of a declared size"] = ndarray + b"J" + struct.pack("<i", 2**31 - 1) + b"\x85R"
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n" + ndarray + b"K\x00\x85" + text("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"\x89\x88\x87R"
    terabyte = b"\x8a\x06" + (2**40).to_bytes(6, "little")
    for shape in (terabyte, b"J\xff\xff\xff\xff", text("x"), b"N"):
        state = b"(K\x01" + shape + b"\x85" + dtype + b"\x89" + b"C\x00" + b"tb"
        cases[f"array of shape {shape}"] = reconstruct + state
    cases["array without state"] = b"}" + text("pixelated_images") + reconstruct + b"s"
    cases["memo of 2^31 entries"] = b"N" + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1) + b"0" + b"h\x00"
    for code in (pickle.BINBYTES8, pickle.BINUNICODE8, pickle.BYTEARRAY8, pickle.FRAME):
        cases[f"{code} of 2^40 bytes"] = pickle.PROTO + b"\x05" + code + struct.pack("<Q", 2**40) + b"x"
    cases["integer of 2 GB"] = pickle.LONG4 + struct.pack("<i", 2**31 - 1) + b"x"
    cases["nested lists"] = b"]" * 10**6 + b"a" * (10**6 - 1)
    cases["nested tuples"] = b"N" + b"\x85" * 10**6
    cases["a key that takes for ever to hash"] = b"}N" + b"2\x86" * 60 + b"Ns"
    memoized = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    cases["the same by memo"] = b"}N" + memoized + b"Ns"
    for value in (
        np.array([Calls(os.mkdir, "executed")], dtype=object),
        np.zeros(3),
        np.zeros(2, dtype=[("a", "u1"), ("b", "O")]),
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype="V8"),
        np.array(["text"]),
        {"pixelated_images": (Calls(os.mkdir, "executed"),), "known_arrays": ()},
        {1, 2},
        Calls(np.ndarray, (2**30, 2**10)),
        np.ma.array([1], mask=[True]),
        torch.zeros(3),
    ):
        for protocol in (2, 4, 5):
            kind = type(value).__name__ + str(getattr(value, "dtype", ""))
            cases[f"pickle of {kind}, protocol {protocol}"] = pickle.dumps(value, protocol)[:-1]
    return {name: code + pickle.STOP for name, code in cases.items()}


def test_hostile_pickles_execute_nothing_and_get_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = hostile_pickles()
    assert len(cases) > 60
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, code in cases.items():
        with open("hostile.pkl", "wb") as file:
            file.write(code)
        start = time.process_time()  # of this process, however busy the machine is
        with pytest.raises(UserError) as error:
            load_test_set("hostile.pkl")
        message = str(error.value)
        assert message.startswith("test_set: hostile.pkl is not a test pickle: ") and "\n" not in message, name
        assert time.process_time() - start < 10, name
    assert os.listdir() == ["hostile.pkl"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
