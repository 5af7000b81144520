"""What the program survives, as figures:
python tests/benchmarks/stress.py kill | images | submissions [--cases N] [--seed N]

kill         SIGKILL to a small training at N random moments, resumed each time: the result is the undisturbed run's
images       N broken and hostile photos, in folders and zips: none stops the cache, bad ones are named, good ones used
submissions  N mutated challenge files: ValueError, or a list that gives the same bytes

Not a test (pytest does not collect it; Linux and macOS only). Exit status 1 where anything is not as it should be.
"""

import argparse
import contextlib
import csv
import io
import os
import random
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))


import main as entry  # noqa: E402
from depixelation.engine import run  # noqa: E402
from depixelation.images.cache import open_cache  # noqa: E402
from depixelation.images.synthetic import synthetic_image  # noqa: E402
from submission_serialization import deserialize, serialize  # noqa: E402

EPOCHS = 8


def training(folder, name, *options):
    """A small training in a process of its own, forked so that it need not import PyTorch again. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    with open(os.path.join(folder, "output.txt"), "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    run.SAVE_EVERY = 0.05  # seconds, so that many moments lie inside of a checkpoint's writing
    options += ("--network_options", '{"channels": [16, 32], "blocks": [1, 1]}', "--synthetic_images", "200")
    options += ("--batch_size", "8", "--precision", "float32", "--device", "cpu", "--epochs", str(EPOCHS))
    status = entry.main(
        [*options, "--output_dir", folder, "--cache_dir", os.path.join(folder, f"cache_{name}"), "--name", name]
    )
    os._exit(status)


def result(folder, name):
    """What must be the same after any number of interruptions: weights, average, optimizer's state and log."""
    best, last = (torch.load(os.path.join(folder, "models", name + s), weights_only=True) for s in (".pt", ".last.pt"))
    with open(os.path.join(folder, "losses", name + ".csv"), encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key != "minutes"} for row in csv.DictReader(file)]
    state = {"best": best["weights"], **{key: last[key] for key in ("parts", "rng")}}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return rows, buffer.getvalue()


def kill(cases, rng):
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        assert os.waitpid(training(folder, "undisturbed"), 0)[1] == 0
        seconds = time.monotonic() - start
        rows, state = result(folder, "undisturbed")
        assert len(rows) == EPOCHS
        kills = finished = identical = unreadable = same_kills = 0
        while kills < cases or os.path.exists(os.path.join(folder, "models", f"killed{finished}.last.pt")):
            name = f"killed{finished}"
            resume = ["--resume"] if os.path.exists(os.path.join(folder, "models", f"{name}.last.pt")) else []
            pid = training(folder, name, *resume)
            if kills < cases:
                time.sleep(rng.uniform(0, seconds / 4))
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            kills += status == signal.SIGKILL
            for file in os.listdir(os.path.join(folder, "models")) if os.path.exists(f"{folder}/models") else []:
                if file.endswith(".pt"):
                    try:
                        torch.load(os.path.join(folder, "models", file), weights_only=True)
                    except Exception as error:
                        unreadable += 1
                        print(f"{file} is unreadable after kill {kills}: {error}")
            if status == 0:
                same = result(folder, name) == (rows, state)
                finished, identical = finished + 1, identical + same
                same_kills = kills if identical == finished else same_kills
                print(f"{kills} kills; run {finished} finished, {'identical' if same else 'DIFFERENT'}", flush=True)
            elif status != signal.SIGKILL:
                with open(os.path.join(folder, "output.txt"), encoding="utf-8") as file:
                    raise SystemExit(f"a resumed run ended with status {status}:\n{file.read()[-2000:]}")
        kinds = (".tmp", ".lock", ".building")
        left = [f for _, dirs, files in os.walk(folder) for f in dirs + files if any(kind in f for kind in kinds)]
        print(
            f"{kills} kills in {finished} runs of {EPOCHS} epochs ({seconds:.1f} s undisturbed, drawing the images "
            f"included): {same_kills} of {kills} led to a result identical to the undisturbed run's; {unreadable} "
            f"files unreadable; temporary files left: {left or 'none'}"
        )
        return identical == finished and not unreadable and not left


# ------------------------------------------------------------------------------------------------ images


def good_files(rng):
    """Photos of several kinds as bytes: {extension: [bytes]}."""
    files = {".jpg": [], ".png": []}
    for i in range(12):
        pixels = synthetic_image(3, i, 96)
        image = Image.fromarray(np.stack([pixels, pixels[::-1], pixels.T], axis=2))
        image = image.convert(("RGB", "L", "CMYK")[i % 3])
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 9)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.choice((50, 95)), progressive=i % 2 == 0, exif=exif)
        files[".jpg"].append(buffer.getvalue())
        buffer = io.BytesIO()
        image.convert(("RGB", "L", "P", "RGBA", "1", "I;16")[i % 6] if i % 6 < 5 else "L").save(buffer, "PNG")
        files[".png"].append(buffer.getvalue())
    return files


def png_of(width, height, data=b""):
    """A PNG that declares any size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def mutated(rng, good):
    """(name's extension, bytes) of a broken or hostile photo."""
    extension = rng.choice((".jpg", ".png"))
    data = bytearray(rng.choice(good[extension]))
    kind = rng.randrange(9)
    if kind < 3:  # flipped bytes
        for _ in range(rng.choice((1, 3, 30, 300))):
            data[rng.randrange(len(data) if kind else min(64, len(data)))] = rng.randrange(256)
    elif kind == 3:
        data = data[: rng.randrange(len(data))]
    elif kind == 4:  # another file's head or tail
        other, at = rng.choice(good[rng.choice((".jpg", ".png"))]), rng.randrange(len(data))
        data = other[:at] + data[at:]
    elif kind == 5:
        extension = {".jpg": ".png", ".png": ".jpg"}[extension]
    elif kind == 6:  # declared sizes, among them decompression bombs
        width, height = (rng.choice((0, 1, 63, 64, 5000, 20000, 65535, 2**31 - 1, 2**32 - 1)) for _ in range(2))
        extension, data = ".png", png_of(width, height, bytes(rng.choice((0, 100, 10**6))))
    elif kind == 7:
        at = data.find(b"\xff\xc0" if extension == ".jpg" else b"IHDR")
        data[at + 4 : at + 12] = rng.randbytes(8)
    else:
        data = rng.choice((b"", b"\0" * 1000, rng.randbytes(500), b"GIF89a", b"<svg/>", b"MZ", b"%PDF-1.4", b"BM" * 50))
    return extension, bytes(data)


def images(cases, rng):
    good = good_files(rng)
    used = bad = wrong = done = 0
    slowest = 0.0
    while done < cases:
        with tempfile.TemporaryDirectory() as folder:
            n = min(100, cases - done)
            members = {f"good/{i}{extension}": data for extension in good for i, data in enumerate(good[extension])}
            in_zip = done // 100 % 2 == 1
            for i in range(n):
                extension, data = mutated(rng, good)
                where = rng.choice(("bad", "/etc", "../..", "C:", "bad/" + "x" * 200)) if in_zip else "bad"
                members[f"{where}/{i}{extension}"] = data
            source = os.path.join(folder, "photos.zip" if in_zip else "photos")
            if in_zip:
                with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as file:
                    for name, data in members.items():
                        file.writestr(name, data)
                    if done < 400:  # a zip bomb: 300 MB of zeros in 300 kB
                        file.writestr("bad/bomb.jpg", bytes(300 * 2**20))
                        members["bad/bomb.jpg"] = None
            else:
                for name, data in members.items():
                    os.makedirs(os.path.dirname(os.path.join(source, name)), exist_ok=True)
                    with open(os.path.join(source, name), "wb") as file:
                        file.write(data)
            start = time.monotonic()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                cache = open_cache(source, os.path.join(folder, "cache"), 0, 0)
            slowest = max(slowest, time.monotonic() - start)
            names, left_out = set(cache.names), {name for name, _ in cache.left_out}
            if names | left_out != set(members) or names & left_out or not {m for m in members if "good" in m} <= names:
                wrong += 1
                print(f"lost: {sorted(set(members) - names - left_out)[:3]}, {sorted(left_out)[:3]}")
            if set(os.listdir(folder)) != {"cache", os.path.basename(source)}:
                wrong += 1
            used += len([name for name in names if not name.startswith("good/")])
            bad += len(left_out)
            done += n
    print(
        f"{done} mutated photos: {bad} left out, each named; {used} still readable and used; all good ones beside "
        f"them used; {wrong} sources with anything lost; slowest source of some 120 photos {slowest:.1f} s"
    )
    return not wrong


# ------------------------------------------------------------------------------------------------ submissions


def submissions(cases, rng):
    refused = same = wrong = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "submission.bin")
        for _ in range(cases):
            arrays = [
                np.frombuffer(rng.randbytes(rng.choice((1, 2, 16, 255, 256, 257, 1024))), np.uint8)
                for _ in range(rng.randrange(1, 8))
            ]
            serialize(arrays, path)
            with open(path, "rb") as file:
                data = bytearray(file.read())
            kind = rng.randrange(4)
            if kind == 0:
                data = data[: rng.randrange(len(data))]
            elif kind == 1:
                data[rng.randrange(min(8, len(data)))] = rng.randrange(256)
            elif kind == 2:
                at = rng.randrange(len(data))
                data[at:at] = rng.randbytes(rng.randrange(1, 10))
            else:
                data = bytearray(rng.randbytes(rng.randrange(40)))
            with open(path, "wb") as file:
                file.write(data)
            start = time.monotonic()
            try:
                read = deserialize(path)
                buffer = io.BytesIO()
                serialize(read, buffer)
                if buffer.getvalue() == data:
                    same += 1
                else:
                    wrong += 1
                    print(f"read, but not the same bytes: {bytes(data[:40])}")
            except ValueError:
                refused += 1
            slowest = max(slowest, time.monotonic() - start)
    print(
        f"{cases} mutated submissions: {refused} refused, {same} valid and the same bytes again, {wrong} wrong; "
        f"slowest {1000 * slowest:.1f} ms"
    )
    return not wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "images", "submissions"))
    parser.add_argument("--cases", type=int, help="default 100, 2000, 5000")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    defaults = {"kill": 100, "images": 2000, "submissions": 5000}
    function = globals()[arguments.what]
    sys.exit(0 if function(arguments.cases or defaults[arguments.what], random.Random(arguments.seed)) else 1)
