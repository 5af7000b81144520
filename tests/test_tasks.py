"""What the loop asks of a task, shown with one that is defined here: nothing else of the program knows it."""

import csv
import os
import re
import signal
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_main import TINY, load_weights, log
from torch import nn
from torch.utils.data import TensorDataset

import main as entry
from tasks import Task, task_names
from tasks.depixelation import DepixelationConfig
from tasks.evaluation import Measurement
from tasks.outputs import sign
from utils import Config, atomic_write, key


class Scale(nn.Module):
    """Multiplies by a number that it learns."""

    def __init__(self, start=0.5):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([start]))

    def forward(self, inputs):
        return inputs * self.factor


@dataclass
class TinyConfig(Config):
    task: str = key("tiny", "the exercise")
    name: str = key("tiny", "the run's name", may_change=True)
    network: str = key("Scale", "the architecture", choices=("Scale",))
    target: float = key(2.0, "the factor to be learned", above=0)
    learning_rate: float = key(0.05, "the peak of the learning rate", above=0)


class Named(TensorDataset):
    names = [str(i) for i in range(40)]


class Tiny(Task):
    """Two parts that take turns: one learns a factor, the other follows the first."""

    Config = TinyConfig
    summary = "learn to multiply"
    networks = {"Scale": Scale}
    parts = ("network", "follower")
    scores = ("closeness",)
    higher_is_better = True

    def example_input(self):
        return torch.ones(1, 1, 2, 2)

    def build_parts(self):
        return {**super().build_parts(), "follower": Scale(0.0)}

    def prepare(self):
        values = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        self.training_set = self.validation_set = Named(values, self.config.target * values)

    def batches(self, network, start):
        for batch in super().batches(network, start):
            yield [index for _, index in batch]

    def loss(self, part, parts, batch):
        inputs, targets = batch
        wanted = targets if part == "network" else parts["network"](inputs).detach()
        column = "train_loss" if part == "network" else "follower_loss"
        return {column: (parts[part](inputs) - wanted).square().mean()}, torch.tensor(float(len(inputs)))

    def measure(self, predictors, dataset, device, precision):
        inputs, targets = dataset.tensors
        with torch.inference_mode():
            errors = [(predict(inputs) - targets).abs().flatten(1).mean(1) for predict in predictors]
        return Measurement({"closeness": -torch.stack(errors).double().numpy()}, np.ones(len(predictors)), inputs[:3])

    def evaluation_set(self, given, models):
        self.prepare()
        return self.validation_set, "40 numbers"

    def plot_log(self, rows, path):
        pass

    def plot_samples(self, sample, path):
        with atomic_write(path) as file:
            file.write(f"{len(sample)} samples, a {sign('picture')}".encode())


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(sys.modules, "tasks.tiny", types.SimpleNamespace(TASK=Tiny))


@pytest.fixture
def run(tmp_path):
    options = ["--task", "tiny", "--batch_size", "8", "--device", "cpu", "--precision", "float32"]
    options += ["--output_dir", str(tmp_path), "--optimizer", "adamw", "--ema_decay", "0.5"]
    return lambda *more: entry.main([*options, *more])


def test_a_task_of_two_parts_trains_resumes_and_is_evaluated(run, tmp_path, monkeypatch, capsys):
    assert run("--epochs", "4", "--name", "whole") == 0
    loss, calls = Tiny.loss, []

    def interrupted(self, part, *arguments):
        calls.append(part)
        if len(calls) == 15:  # in the middle of a step of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, part, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "loss", interrupted)
        assert run("--epochs", "4", "--name", "parts") == 128 + signal.SIGTERM
    assert calls[:4] == ["network", "follower"] * 2
    output = capsys.readouterr().out
    command = re.search(r"python main.py (--resume .*)", output)[1].split()
    assert command[:5] == ["--resume", "--name", "parts", "--task", "tiny"]
    assert entry.main(command) == 0
    states = [torch.load(tmp_path / "models" / f"{name}.last.pt", weights_only=True) for name in ("whole", "parts")]
    for part in Tiny.parts:
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
    assert [row["model"].endswith(f"{name}.pt") for row, name in zip(table, ("whole", "parts"))] == [True, True]
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
    assert run("--views", "3") == 2
    assert "there is no option --views" in capsys.readouterr().err
    config = str(tmp_path / "models" / "tiny.json")
    assert entry.read_command_line(["--config", config])[2].config.target == 2.0  # the file says which task
    assert entry.main(["--config", config, "--task", "depixelation"]) == 2
    assert "is a configuration for --task tiny" in capsys.readouterr().err


def test_names_and_help_of_tasks(run, capsys):
    assert task_names()[0] == "depixelation"
    assert entry.main(["--task", "depixelatoin"]) == 2
    assert "nearest: depixelation" in capsys.readouterr().err
    for arguments, there, not_there in (
        (
            ["--help"],
            [*(f"--{name} " for name in vars(DepixelationConfig())), "exit status", *task_names()],
            "--target",
        ),
        (["--task", "tiny", "--help"], ["--target", "learn to multiply", "default 0.05"], "--crop_scale"),
    ):
        with pytest.raises(SystemExit):
            entry.main(arguments)
        text = capsys.readouterr().out
        assert all(word in text for word in there) and not_there not in text


def test_two_images_are_learned_by_heart(tmp_path):
    """The whole chain: the loss on two images falls far below what any model has on new ones."""
    options = [*TINY, "--output_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache"), "--max_images", "2"]
    options += ["--network_options", '{"channels": [32, 64], "blocks": [1, 2]}', "--learning_rate", "4e-3"]
    options += ["--synthetic_images", "80", "--validation_fraction", "0.1", "--epochs", "8", "--batch_size", "4"]
    assert entry.main(options) == 0
    rows = log(tmp_path)
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"] and rows[-1]["train_loss"] < 0.5 * rows[-1]["score"]
