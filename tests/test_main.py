"""The entry point from end to end: train, interrupt, resume, predict, on a network of a few thousand weights."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from conftest import TINY_UNET as TINY
from conftest import interrupt_at, load_weights, log, start_main, tick
from PIL import Image

import main as entry
from depixelation.engine import run as runs
from depixelation.images.cache import open_cache
from depixelation.mosaics import rectangle_tasks
from submission_serialization import deserialize
from utils import ROOT, locked

SHIPPED = ("--network_options", '{"channels": [96, 160, 224, 288], "margin": 16}')  # of models/photos.pt


@pytest.mark.usefixtures("figures")
def test_train_interrupt_resume_predict(run, test_set, tmp_path, monkeypatch, capsys):
    assert run("--name", "whole", "--epochs", "3") == 0
    for step, number in ((5, signal.SIGINT), (3, signal.SIGTERM)):  # in the second epoch; then in what is left
        with monkeypatch.context() as patch:
            interrupt_at(patch, step, number)
            action = ["--resume"] if number == signal.SIGTERM else ["--epochs", "3"]
            assert run("--name", "parts", *action) == 128 + number
        assert "python main.py --resume --name parts" in capsys.readouterr().out
    assert run("--name", "parts", "--resume") == 0

    files = [f"models/whole{s}" for s in (".pt", ".json", ".last.pt")] + [
        f"losses/whole{s}" for s in (".csv", ".png", "_samples.png")
    ]
    assert all((tmp_path / file).exists() and (tmp_path / file.replace("whole", "parts")).exists() for file in files)
    assert not list(tmp_path.rglob("*.tmp"))
    for suffix in (".pt", ".last.pt"):  # resumed exactly, to the last bit
        whole, parts = (load_weights(tmp_path / "models" / (name + suffix)) for name in ("whole", "parts"))
        assert all(map(torch.equal, whole.values(), parts.values()))
    rows = log(tmp_path, "whole")
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[-1]["score"] < rows[-1]["identity_score"]
    for a, b in zip(rows, log(tmp_path, "parts"), strict=True):
        assert {**a, "minutes": 0} == {**b, "minutes": 0}
    for picture in ("whole.png", "whole_samples.png"):
        with Image.open(tmp_path / "losses" / picture) as image:
            assert min(image.size) > 300 and np.ptp(np.asarray(image.convert("L"))) == 255

    path, images, known = test_set
    submission = tmp_path / "out" / "submission.bin"
    assert run("--predict", "--name", "whole", "--test_set", path, "--submission", str(submission)) == 0
    assert "20 images" in capsys.readouterr().out
    predictions = deserialize(submission)
    assert [len(p) for p in predictions] == [(~k).sum() for k in known]
    assert any(np.abs(p.astype(int) - i[~k]).max() > 3 for p, i, k in zip(predictions, images, known))
    assert sorted(os.listdir(submission.parent)) == ["submission.bin", "submission.png"]


def test_model_needs_nothing_but_its_file(run, test_set, tmp_path, capsys):
    assert run("--epochs", "1") == 0
    config = json.loads((tmp_path / "models" / "default.json").read_text())
    assert config["network_options"] == {"channels": [16, 32], "blocks": [1, 1]} and not set(config) & {
        "cache_dir",
        "test_set",
    }
    moved = tmp_path / "moved.pt"
    (tmp_path / "models" / "default.pt").rename(moved)
    (tmp_path / "empty.json").write_text("{}")
    submission = tmp_path / "moved.bin"
    options = ["--config", str(tmp_path / "empty.json"), "--predict", "--test_set", test_set[0]]
    options += ["--submission", str(submission)]
    assert entry.main([*options, "--model", str(moved)]) == 0 and submission.exists()
    again = entry.read_command_line(["--config", str(tmp_path / "models" / "default.json")]).task.config
    assert again.network_options == config["network_options"] and again.output_dir == ROOT
    assert again.images == "synthetic"
    capsys.readouterr()
    assert entry.main([*options, "--model", str(moved), "--network", "BasicCNN"]) == 2
    assert "leave --network out" in capsys.readouterr().err
    assert entry.main([*options, "--model", str(moved), "--network_options", "{}"]) == 2
    assert "leave --network_options out" in capsys.readouterr().err
    assert run("--evaluate", "--model", str(moved), "--views", "1") == 0
    row = log(tmp_path)[0]
    table = capsys.readouterr().out
    assert re.search(rf"moved.pt +{row['score']:.3f} ", table) and f" {row['identity_score']:.3f} " in table
    assert run("--init", str(moved), "--name", "more", "--epochs", "1") == 0
    assert log(tmp_path, "more")[0]["train_loss"] < log(tmp_path)[0]["train_loss"]
    assert run("--init", str(moved), "--network_options", "{}", "--epochs", "1") == 2
    assert "do not fit OddUNet" in capsys.readouterr().err


def test_without_a_model_of_ones_own_the_shipped_one_predicts(run, test_set, tmp_path, capsys):
    submission = tmp_path / "shipped.bin"
    assert run("--predict", *SHIPPED, "--test_set", test_set[0], "--submission", str(submission)) == 0
    assert os.path.join("models", "photos.pt") in capsys.readouterr().out and submission.exists()
    assert run("--epochs", "1") == 0
    capsys.readouterr()
    assert run("--predict", "--test_set", test_set[0], "--submission", str(submission)) == 0
    assert "default.pt" in capsys.readouterr().out


def test_identity_model_predicts_the_input(run, test_set, tmp_path):
    path, images, known = test_set
    submission = tmp_path / "identity.bin"
    assert (
        run(
            "--predict",
            "--network",
            "IdentityModel",
            "--network_options",
            "{}",
            "--test_set",
            path,
            "--submission",
            str(submission),
        )
        == 0
    )
    assert all(np.array_equal(p, i[~k]) for p, i, k in zip(deserialize(submission), images, known))


@pytest.mark.parametrize(
    "options, words",
    [
        (["--predict", "--name", "nothing"], ["nothing.pt", "train one first"]),
        (["--predict", "--test_set", "missing.pkl", *SHIPPED], ["missing.pkl", "--test_set"]),
        (["--resume", "--name", "nobody"], ["nobody", "without --resume"]),
        (["--images", "nowhere"], ["images", "nowhere"]),
        (["--init", "nowhere.pt", "--epochs", "1"], ["nowhere.pt"]),
        (["--network_options", '{"chanels": [8]}'], ["network_options", "chanels"]),
        (["--network", "IdentityModel", "--network_options", "{}"], ["IdentityModel", "no parameters"]),
        (["--device", "cuda"], ["cuda", "--device cpu"]),
        (["--max_minutes", "none", "--epochs", "none"], ["epochs", "max_minutes"]),
        (["--lerning_rate", "1"], ["--learning_rate"]),
        (["--predict", "--views", "9", *SHIPPED], ["views", "at most 8"]),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, options, words, capsys):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run(*options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "images/s" not in line]
    assert len(errors) == 1 and errors[0].startswith("main.py: error: ") and all(word in errors[0] for word in words)


def test_resume_refuses_another_run_and_a_finished_one(run, capsys):
    assert run("--epochs", "1") == 0
    assert run("--resume", "--batch_size", "8") == 2
    assert "batch_size cannot change" in capsys.readouterr().err
    assert run("--resume") == 2
    assert "is finished" in capsys.readouterr().err


def test_resume_refuses_other_photos_and_takes_moved_ones(run, photos, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(photos, folder)
    assert run("--images", str(folder), "--epochs", "1") == 0
    assert "held out" in capsys.readouterr().out
    folder.rename(tmp_path / "moved")
    assert run("--resume", "--epochs", "2") == 2
    assert "copy" in capsys.readouterr().err
    assert run("--resume", "--epochs", "2", "--images", str(tmp_path / "moved")) == 0
    (tmp_path / "moved" / "003" / "0000015.jpg").unlink()
    assert run("--resume", "--epochs", "3") == 2
    assert "no longer holds the same photos" in capsys.readouterr().err
    for path in list((tmp_path / "moved").rglob("*.jpg"))[1:]:
        path.unlink()
    assert run("--images", str(tmp_path / "moved"), "--epochs", "1", "--name", "one") == 2
    assert "1 usable photos" in capsys.readouterr().err


def test_workers_change_nothing(run, tmp_path):
    for workers in ("0", "2"):
        assert run("--epochs", "1", "--name", workers, "--workers", workers) == 0
    a, b = (torch.load(tmp_path / "models" / f"{name}.pt", weights_only=True) for name in "02")
    assert all(map(torch.equal, a["weights"].values(), b["weights"].values())) and a["score"] == b["score"]


def test_loss_that_is_not_finite_keeps_the_best_model(run, tmp_path, capsys):
    assert run("--epochs", "1") == 0
    best = (tmp_path / "models" / "default.pt").read_bytes()
    assert run("--epochs", "2", "--learning_rate", "1e30", "--gradient_clip", "1e30", "--warmup", "0") == 2
    assert "learning_rate: the loss became" in capsys.readouterr().err
    assert (tmp_path / "models" / "default.pt").read_bytes() == best


def test_weights_that_are_not_finite_are_never_saved(run, tmp_path, monkeypatch, capsys):
    assert run("--epochs", "1") == 0
    files = {path: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    step = torch.nn.utils.clip_grad_norm_

    def poisoned(parameters, *arguments, **options):  # as an infinite gradient norm does: not all weights, no loss yet
        step(parameters, *arguments, **options)
        parameters[-1].grad.fill_(float("nan"))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    assert run("--epochs", "1", "--batch_size", "64") == 2  # one step
    assert "the loss became nan" in capsys.readouterr().err
    last = tmp_path / "models" / "default.last.pt"  # of the beginning
    assert all(w.isfinite().all() for w in load_weights(last).values())
    assert {path: content for path, content in files.items() if path != last} == {
        path: path.read_bytes() for path in (tmp_path / "models").iterdir() if path != last
    }


def test_an_interrupted_run_is_not_replaced(run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run("--epochs", "1") == 130
    last = tmp_path / "models" / "default.last.pt"
    content = last.read_bytes()
    assert run("--epochs", "1") == 2
    assert "--resume --name default" in capsys.readouterr().err and last.read_bytes() == content
    assert run("--resume") == 0
    assert run("--epochs", "1") == 0


def test_states_that_are_none(run, tmp_path, capsys):
    assert run("--epochs", "1") == 0
    last = tmp_path / "models" / "default.last.pt"
    content, state = last.read_bytes(), torch.load(last, weights_only=True)
    wrong = [
        content[: len(content) // 2],
        {**state, "config": {**state["config"], "depth": 3}},
        {**state, "config": []},
    ]
    part = state["parts"]["network"]
    wrong += [{**state, "run": {}}, {**state, "run": None}, {**state, "rng": {}}, {**state, "precision": "int8"}]
    wrong += [{**state, "run": {**state["run"], "sums": [3]}}, {**state, "run": {**state["run"], "step": "3"}}]
    wrong += [{**state, "parts": {}}, {**state, "parts": {"network": []}}, {**state, "images": None}, state["run"]]
    for key, value in (("optimizers", []), ("optimizers", [{}, {}]), ("average", {}), ("weights", {3: 4})):
        wrong.append({**state, "parts": {"network": {**part, key: value}}})
    wrong += [{**state, "config": {**state["config"], "task": "denoising"}}]
    wrong += [{**state, "config": {**state["config"], "teacher": "teacher.pt"}}]
    wrong += [{key: value for key, value in state.items() if key != "parts"} | part]  # of version 1
    wrong += [{**state, "config": {**state["config"], "network": "BasicCNN", "network_options": {}}}]
    capsys.readouterr()
    for number, case in enumerate(wrong):
        if isinstance(case, bytes):
            last.write_bytes(case)
        else:
            torch.save(case, last)
        before = last.read_bytes()
        assert run("--resume", "--epochs", "2") == 2, number
        error = [line for line in capsys.readouterr().err.splitlines() if "main.py: error" in line]
        assert len(error) == 1 and last.read_bytes() == before


def test_early_stopping_and_best_score_survive_interruptions(run, tmp_path, monkeypatch):
    """With a learning rate that changes nothing, the first score stays the best, and the third like it is the end."""
    options = ("--epochs", "9", "--validate_every", "2", "--patience", "2")
    options += ("--learning_rate", "1e-12", "--ema_decay", "0")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)  # in the third epoch
        assert run(*options) == 130
    assert run("--resume") == 0
    scores = [row["score"] for row in log(tmp_path)]
    assert [row["epoch"] for row in log(tmp_path)] == [2, 4, 6] and scores[0] <= min(scores)
    assert torch.load(tmp_path / "models" / "default.pt", weights_only=True)["epoch"] == 2


def test_the_working_directory_does_not_matter(run, test_set, tmp_path, monkeypatch):
    assert run("--epochs", "1") == 0
    written = []
    for place in (ROOT, tmp_path):
        monkeypatch.chdir(place)
        submission = tmp_path / f"{len(written)}.bin"
        assert run("--predict", "--name", "default", "--test_set", test_set[0], "--submission", str(submission)) == 0
        written.append(submission.read_bytes())
    assert written[0] == written[1]
    assert run("--epochs", "1", "--name", "again") == 0
    a, b = (torch.load(tmp_path / "models" / f"{name}.pt", weights_only=True) for name in ("default", "again"))
    assert all(map(torch.equal, a["weights"].values(), b["weights"].values()))


def children(pid):
    """The process ids of all children of a process (Linux)."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes with the ps of Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_while_images_are_prepared(tmp_path, number):
    cache = tmp_path / "cache"
    options = ["--output_dir", tmp_path, "--cache_dir", cache, "--synthetic_images", "100000"]
    process = start_main(options, tmp_path / "output.txt", method="fork")
    while not any(path.stat().st_size for path in cache.glob("*.building.*/pixels.bin")):  # all workers have started
        assert process.exitcode is None
        time.sleep(0.05)
    workers = children(process.pid)
    os.kill(process.pid, number)
    process.join(30)
    for _ in range(100):  # they look once a second whether their parent is there
        workers = [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
        if not workers:
            break
        time.sleep(0.1)
    assert not workers
    if number == signal.SIGKILL:
        assert process.exitcode == -signal.SIGKILL and len(list(cache.glob("*.building.*"))) == 1
        open_cache("synthetic", str(cache), 0, 10)
    else:
        assert process.exitcode == 130
    assert not list(cache.glob("*.building.*"))


def test_a_full_disk_keeps_the_last_good_checkpoint(run, tmp_path, capsys):
    """A limit on the size of files stands for the full disk."""
    assert run("--epochs", "1") == 0
    files = {path: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    limit = min(len(content) for path, content in files.items() if path.suffix == ".pt") // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        assert run("--resume", "--epochs", "2") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = [line for line in capsys.readouterr().err.splitlines() if "main.py: error" in line]
    assert len(errors) == 1 and "default" in errors[0] and "File too large" in errors[0]
    assert {path: path.read_bytes() for path in (tmp_path / "models").iterdir()} == files
    assert run("--resume", "--epochs", "2") == 0
    (tmp_path / "file").write_text("where a folder should be")
    assert run("--epochs", "1", "--output_dir", str(tmp_path / "file")) == 2
    assert "Not a directory" in capsys.readouterr().err.splitlines()[-1]


def test_a_second_run_of_the_same_name_is_refused(run, tmp_path, capsys):
    path = tmp_path / "models" / "default.lock"
    with locked(str(path), "x"):
        second = start_main([*TINY, "--output_dir", tmp_path, "--epochs", "1"], tmp_path / "output.txt")
        second.join(60)
        (line,) = (tmp_path / "output.txt").read_text().splitlines()
        assert second.exitcode == 2 and "default.lock" in line and "--name" in line
        assert run("--epochs", "1", "--name", "another") == 0
    assert not path.exists()
    path.touch()  # of a process that is dead
    assert run("--epochs", "1") == 0 and not path.exists()


def test_one_end_that_is_given_alone_lifts_the_other(run, tmp_path):
    (tmp_path / "brief.json").write_text('{"max_minutes": 1e-6}')
    assert run("--config", "brief.json", "--epochs", "2", "--name", "epochs") == 0
    assert [row["epoch"] for row in log(tmp_path, "epochs")] == [1, 2]
    assert run("--config", "brief.json", "--epochs", "none", "--name", "minutes") == 0  # no end: the other one stays
    assert log(tmp_path, "minutes")[-1]["epoch"] == 0.25  # a step
    assert run("--resume", "--name", "minutes", "--epochs", "1") == 0
    assert log(tmp_path, "minutes")[-1]["epoch"] == 1


WINDOWS = ["--network", "ResidualUNet", "--network_options", '{"channels": [8, 8], "blocks": [1, 1]}']


@pytest.mark.parametrize("options", [[], WINDOWS])  # with windows that widen
def test_a_state_saved_within_an_epoch_resumes_exactly(run, tmp_path, monkeypatch, options):
    with monkeypatch.context() as patch:
        saves, save = [], entry.save_run
        patch.setattr(entry, "save_run", lambda *arguments: saves.append(arguments[2].step) or save(*arguments))
        tick(patch, 50)
        assert run("--name", "whole", "--epochs", "2", *options) == 0
        assert saves == [0, 3, 4, 7, 8]  # at first, after each epoch, and once two minutes have passed since
    with monkeypatch.context() as patch:
        calls, loss = [], rectangle_tasks.training_loss
        patch.setattr(runs, "SAVE_EVERY", -1)
        patch.setattr(rectangle_tasks, "training_loss", lambda *a: calls.append(len(calls) < 6 or 1 / 0) or loss(*a))
        with pytest.raises(ZeroDivisionError):  # as if killed: nothing is saved at the end
            run("--name", "parts", "--epochs", "2", *options)
    paths = [tmp_path / "models" / f"{name}.last.pt" for name in ("parts", "whole")]
    assert torch.load(paths[0], weights_only=True)["run"]["step"] == 6
    assert run("--name", "parts", "--resume", *options) == 0
    parts, whole = map(load_weights, paths)
    assert whole.keys() == parts.keys() and all(map(torch.equal, whole.values(), parts.values()))


def test_budget_in_minutes(run, tmp_path, monkeypatch):
    tick(monkeypatch, 0.25)
    assert run("--max_minutes", "0.04", "--loss", "mse") == 0
    rows = log(tmp_path)
    assert 0.03 <= rows[-1]["minutes"] < 0.05 and np.allclose(np.diff([0] + [row["epoch"] for row in rows[:-1]]), 1)


def test_tensorboard_gets_what_the_log_gets(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if not installed
    assert run("--tensorboard", "true", "--epochs", "1") == 2
    assert "pip install tensorboard" in capsys.readouterr().err

    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, *scalar):
            written.append(scalar)

        def add_images(self, name, images, step):
            assert images.dtype == torch.uint8 and images.shape[1:] == (1, 64, 3 * 64)
            written.append((name, step))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    assert run("--tensorboard", "true", "--epochs", "2") == 0
    assert written[0] == (str(tmp_path / "losses" / "default_tensorboard"), 1)
    for row, line in zip(log(tmp_path), (written[1:5], written[5:9]), strict=True):
        step = int(row["step"])
        assert line[:3] == [(key, float(row[key]), step) for key in ("train_loss", "score", "identity_score")]
        assert line[3] == ("truth, pixelated, prediction", step)


def test_command_line_in_a_process(tmp_path):
    command = [sys.executable, os.path.join(ROOT, "main.py"), "--epochs", "0"]
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr
