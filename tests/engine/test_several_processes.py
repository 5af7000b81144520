"""Training in several processes, as torchrun starts them, and under the spawn start method of other systems."""

import csv
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import TINY_UNET, read_until, start_main

import main as entry
from utils import ROOT

MAIN = os.path.join(ROOT, "main.py")


def options(folder, *more):
    """Of a small run whose batches two processes cannot share evenly."""
    places = ["--output_dir", str(folder), "--cache_dir", str(folder.parent / "cache")]
    return [*TINY_UNET, "--optimizer", "adamw", "--batch_size", "15", "--seed", "3", *places, *more]


def start(folder, *more):
    """Two processes that train together, in a process group of their own; OMP_NUM_THREADS is 1 in each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", MAIN]
    return subprocess.Popen(
        command + options(folder, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def train_together(folder, *more, statuses=(0, 0)):
    """As `start` does, with processes that need not import all. Returns what they printed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folder.mkdir(exist_ok=True)
    outputs = [folder / f"{rank}.txt" for rank in (0, 1)]
    processes = [
        start_main(options(folder, *more), output, shared | {"RANK": str(rank)}) for rank, output in enumerate(outputs)
    ]
    for process, status in zip(processes, statuses):
        process.join(120)
        assert process.exitcode == status
    return "".join(output.read_text() for output in outputs)


def rows(folder):
    with open(folder / "losses" / "default.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return torch.load(folder / "models" / "default.last.pt", weights_only=True)["parts"]["network"]["weights"]


def test_two_processes_train_as_one_does_and_resume_exactly(tmp_path):
    alone, both, parts = (tmp_path / name for name in ("alone", "both", "parts"))
    # MSE: a mean over pixels, of which each image has another number. AdamW, since Muon makes much of the rounding in
    # which the two differ.
    more = ("--epochs", "4", "--loss", "mse")
    assert entry.main(options(alone, *more)) == 0
    train_together(both, *more)
    assert len(rows(both)) == 4
    assert len(torch.load(both / "models" / "default.last.pt", weights_only=True)["other_rngs"]) == 1
    for one, two in zip(rows(alone), rows(both), strict=True):
        assert [one[key] for key in ("epoch", "step", "samples")] == [two[key] for key in ("epoch", "step", "samples")]
        assert float(one["train_loss"]) == pytest.approx(float(two["train_loss"]), rel=1e-4)
        assert float(one["score"]) == pytest.approx(float(two["score"]), abs=0.005)
        assert one["identity_score"] == two["identity_score"]
    assert float(rows(both)[-1]["score"]) < float(rows(both)[-1]["identity_score"]) - 1

    process = start(parts, *more)
    output = read_until(process.stdout, rb"epoch 1: training loss")
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal, which reaches torchrun and all it started
    output = (output + process.communicate(timeout=120)[0]).decode()
    assert output.count("Stopped at epoch") == 1 and process.returncode, output
    assert "batches of 15, shared by 2 processes" in output and len(rows(parts)) < 4
    train_together(parts, "--resume")
    for one, two in zip(rows(both), rows(parts), strict=True):
        assert {**one, "minutes": 0} == {**two, "minutes": 0}
    assert all(torch.equal(a, b) for a, b in zip(weights(both).values(), weights(parts).values(), strict=True))
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.lock"))


def test_a_mistake_is_one_line_in_several_processes_too(tmp_path):
    output = train_together(tmp_path / "x", "--images", str(tmp_path / "nowhere"), statuses=(2, 1))
    assert output.count("main.py: error: ") == 1 and "there is no folder or file" in output
    assert "RuntimeError" not in output


def test_the_spawn_start_method(tmp_path):
    """As on Windows and macOS, where processes import everything anew and inherit nothing."""
    arguments = options(tmp_path / "out", "--epochs", "1", "--workers", "1", "--synthetic_images", "32")
    process = start_main(arguments, tmp_path / "output.txt", method="spawn")
    process.join(120)
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 0 and "Done: best score" in output, output
