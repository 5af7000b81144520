"""The first hour of a new user: help that fits a screen, and no trap on the student's way."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

import main as entry
from depixelation.commands import commands_of
from depixelation.engine.models import chosen_model
from depixelation.engine.options import ModelOptions
from depixelation.tasks import load_task, task_names
from submission_serialization import serialize
from utils import ROOT, key_types


def test_the_readme_is_short():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        text = file.read()
    lines = text.splitlines()
    assert len(lines) <= 120 and len(text.split()) <= 1100
    assert not [line for line in lines if len(line) > 100]
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert path.startswith("http") or os.path.exists(os.path.join(ROOT, path)), path


@pytest.mark.parametrize("task", task_names())
def test_help_fits_a_screen(task, capsys):
    assert entry.main(["--task", task, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 120
    assert entry.main(["--task", task, "--help", "all"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{key} " in text for key in key_types(load_task(task).Config))


def test_each_command_has_its_help(capsys):
    for name, command in commands_of("depixelation").items():
        assert entry.main([f"--{name}", "--help"]) == 0
        text = capsys.readouterr().out
        options = key_types(command.options_type(load_task("depixelation")))
        assert f"--{name}" in text.splitlines()[0] and all(f"--{key}" in text for key in options)
        assert command.example in text and command.example.startswith("python main.py ")


def test_the_model_that_predicts_is_named_with_its_score(run, shared, test_set, tmp_path, monkeypatch, capsys):
    """A model of drawn images is not taken in silence, and each model has a challenge file of its own."""
    (tmp_path / "models").mkdir()
    shutil.copy(shared / "models" / "default.pt", tmp_path / "models" / "default.pt")
    monkeypatch.setattr("depixelation.commands.predict.ROOT", str(tmp_path))
    assert run("--predict", "--test_set", test_set[0]) == 0
    output = capsys.readouterr()
    assert re.search(r"BasicCNN from models/default.pt, score \d+\.\d+ on held-out drawn images", output.out)
    assert "trained on drawn images" in output.err and os.path.join("models", "photos.pt") in output.err
    assert (tmp_path / "submission_default.bin").exists() and (tmp_path / "submission_default.png").exists()


def test_the_only_model_of_an_unpacked_hand_in_is_taken(tmp_path, monkeypatch):
    task_type = load_task("depixelation")
    monkeypatch.setattr(task_type, "shipped", str(tmp_path / "models" / "photos.pt"))
    task = task_type(task_type.Config(output_dir=str(tmp_path)))
    assert chosen_model(task, ModelOptions()) == task.shipped  # none is there: the message names it
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.pt").touch()
    (tmp_path / "models" / "mine.last.pt").touch()
    assert chosen_model(task, ModelOptions()) == str(tmp_path / "models" / "mine.pt")
    assert chosen_model(task, ModelOptions(name="other")) == str(tmp_path / "models" / "other.pt")


def test_a_short_run_draws_more_than_one_point(run, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr("depixelation.engine.run.PREVIEWS", 1.0)  # in a run of two seconds they take a larger share
    monkeypatch.setattr(entry, "plot_curves", lambda panels, path, title: drawn.append((panels, title)))
    assert run("--max_minutes", "0.03", "--synthetic_images", "1000") == 0
    panels, title = drawn[-1]
    (x, y) = panels[0].curves["validation score"]
    assert len(x) > 3 and x == sorted(x) and len(y) == len(x)
    with open("losses/default.csv", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    assert y[-1] != pytest.approx(float(last["score"]), abs=1e-3)  # of the previews' images, or the curve would jump
    assert title == f"Validated on the first 32 held-out images. On all 100: score {float(last['score']):.3f}"
    output = capsys.readouterr().out
    assert "of the run: training loss" in output
    assert "Next: python main.py --predict --test_set test_set.pkl --name default" in output
    assert not [name for name in panels[0].lines if "2023" in name]  # on drawn images
    monkeypatch.setattr("depixelation.engine.run.PREVIEWS", 1e-9)
    assert run("--max_minutes", "0.01", "--synthetic_images", "1000") == 0
    assert capsys.readouterr().out.count("of the run: training loss") == 1  # more would take longer than allowed


def test_compare_warns_of_different_images(run, tmp_path, capsys):
    (tmp_path / "losses").mkdir()
    (tmp_path / "models").mkdir()
    for name, images in (("a", "synthetic"), ("b", "training.zip")):
        (tmp_path / "losses" / f"{name}.csv").write_text("epoch,minutes,train_loss,score\n1,1,20,17\n2,2,19,16.5\n")
        (tmp_path / "models" / f"{name}.json").write_text(json.dumps({"images": images}))
    assert run("--compare", "a", "b") == 0
    assert "different images" in capsys.readouterr().err
    assert run("--compare", "a", "a") == 0
    captured = capsys.readouterr()
    assert "different images" not in captured.err and re.search(r"^a +2.0 +19 +16.5$", captured.out, re.M)
    (tmp_path / "losses" / "c.csv").write_text("epoch,minutes,train_loss,accuracy\n1,1,20,97\n2,2,19,96\n")
    assert entry.main(["--task", "classification", "--compare", "c", "--output_dir", str(tmp_path)]) == 0
    assert re.search(r"^c +2.0 +20 +97$", capsys.readouterr().out, re.M)  # of accuracy, more is better


def test_score_says_points_and_place(tmp_path, capsys):
    for name, level in (("a", 100), ("b", 120)):
        serialize([np.full(9, level, np.uint8)] * 3, tmp_path / f"{name}.bin")
    assert entry.main(["--score", str(tmp_path / "a.bin"), str(tmp_path / "b.bin")]) == 0
    assert re.search(r"place below 10 of 204, \d+ points", capsys.readouterr().out)


@pytest.mark.parametrize("task", ["denoising", "classification"])
def test_a_few_images_make_no_epochs_of_one_step(task):
    task_type = load_task(task)
    few = task_type(task_type.Config(synthetic_images=400, max_images=2))
    few.prepare()
    every = task_type(task_type.Config(synthetic_images=400))
    every.prepare()
    assert len(few.training_set) == len(every.training_set) and few.count_images() == 2
    first = [torch.as_tensor(few.training_set[i][-1]).double().sum().item() for i in range(0, 40, 2)]
    assert len(set(first)) == 1
