"""What the loop asks of a task, shown with one that lies here in a file: nothing else of the program knows it."""

import csv
import os
import re
import signal
import sys

import pytest
import torch
from conftest import CPU, interrupt_at, load_weights, log

import main as entry
from depixelation import tasks
from depixelation.command_line import read_command_line
from depixelation.tasks import load_task, task_names
from depixelation.tasks.depixelation import Depixelation

EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "example")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, EXAMPLE])
    yield
    sys.modules.pop("depixelation.tasks.tiny", None)


@pytest.fixture
def run(tmp_path):
    options = ["--task", "tiny", "--batch_size", "8", "--optimizer", "adamw", "--ema_decay", "0.5", *CPU]
    return lambda *more: entry.main([*options, "--output_dir", str(tmp_path), *more])


def test_a_task_is_one_short_file():
    with open(os.path.join(EXAMPLE, "tiny.py"), encoding="utf-8") as file:
        assert len(file.readlines()) <= 100


def test_a_task_of_two_parts_trains_resumes_and_is_evaluated(run, tmp_path, monkeypatch, capsys):
    assert run("--epochs", "4", "--name", "whole") == 0
    with monkeypatch.context() as patch:
        tiny = load_task("tiny")
        interrupt_at(patch, 8, signal.SIGTERM, tiny, "loss")  # in the middle of a step of the second epoch
        assert run("--epochs", "4", "--name", "parts") == 128 + signal.SIGTERM
    output = capsys.readouterr().out
    command = re.search(r"python main.py (--resume .*)", output)[1].split()
    assert command[:5] == ["--resume", "--name", "parts", "--task", "tiny"]
    assert entry.main(command) == 0
    states = [torch.load(tmp_path / "models" / f"{name}.last.pt", weights_only=True) for name in ("whole", "parts")]
    for part in ("network", "follower"):
        a, b = (state["parts"][part] for state in states)
        assert a["steps"] == b["steps"] == 20 and torch.equal(a["weights"]["factor"], b["weights"]["factor"])
        assert torch.equal(a["average"]["module.factor"], b["average"]["module.factor"])
    rows = [{**row, "minutes": 0} for row in log(tmp_path, "whole")]
    assert rows == [{**row, "minutes": 0} for row in log(tmp_path, "parts")]
    assert list(rows[0])[-3:] == ["train_loss", "follower_loss", "closeness"]
    assert rows[-1]["closeness"] > rows[0]["closeness"]  # higher is better, and the best is kept
    best = load_weights(tmp_path / "models" / "whole.pt")["factor"].item()
    assert abs(best - 2) < abs(0.5 - 2) and best > states[0]["parts"]["follower"]["weights"]["factor"].item()

    models = [str(tmp_path / "models" / f"{name}.pt") for name in ("whole", "parts")]
    capsys.readouterr()
    assert run("--evaluate", *models) == 0
    output = capsys.readouterr().out
    assert "On 40 numbers" in output and re.search(r"parts\.pt  \+0\.000 \(\+0\.000 to \+0\.000\)", output)
    with open(tmp_path / "losses" / "tiny_evaluation.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    names = [row["depixelation_model"] for row in table]
    assert [name.endswith(f"{run}.pt") for name, run in zip(names, ("whole", "parts"))] == [True, True]
    assert float(table[0]["closeness"]) == pytest.approx(rows[-1]["closeness"], abs=1e-3)
    assert run("--compare", "whole", "parts") == 0 and (tmp_path / "losses" / "tiny_compared.png").exists()
    assert run("--compare", "whole", "missing") == 2
    assert "missing.csv: No such file" in capsys.readouterr().err


def test_models_and_runs_of_another_task_are_refused(run, tmp_path, capsys):
    assert run("--epochs", "1") == 0
    capsys.readouterr()
    here = ["--output_dir", str(tmp_path)]
    for arguments in (["--predict", str(tmp_path / "models" / "tiny.pt")], ["--resume", "--name", "tiny"]):
        assert entry.main([*arguments, *here]) == 2
        error = capsys.readouterr().err
        assert "tiny" in error and "--task tiny, not " in error and error.count("\n") == 1
    assert run("--predict") == 2  # which this task does not have
    assert "--predict" in capsys.readouterr().err
    assert run("--crop_scale", "[1, 1]") == 2
    assert "there is no option --crop_scale" in capsys.readouterr().err
    config = str(tmp_path / "models" / "tiny.json")
    assert read_command_line(["--config", config]).task.config.target == 2.0  # the file says which task
    assert entry.main(["--config", config, "--task", "depixelation"]) == 2
    assert "is a configuration for --task tiny" in capsys.readouterr().err


def test_names_and_help_of_tasks(capsys):
    assert task_names()[0] == "depixelation" and "tiny" in task_names()
    assert entry.main(["--task", "depixelatoin"]) == 2
    assert "nearest: depixelation" in capsys.readouterr().err
    every_key = [f"--{name} " for name in vars(Depixelation.Config())]
    for arguments, there, not_there in (
        (["--help"], ["exit status", *task_names(), "learn to multiply"], "--target"),
        (["--help", "all"], ["exit status", *every_key], "--target"),
        (["--task", "tiny", "--help", "all"], ["--target", "learn to multiply", "default 0.05"], "--crop_scale"),
    ):
        assert entry.main(arguments) == 0
        text = capsys.readouterr().out
        assert all(word in text for word in there) and not_there not in text
