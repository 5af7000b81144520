"""What a command has to say of itself, shown with one that lies here: nothing of the program knows it."""

import os
import sys

import pytest

import main as entry
from depixelation import commands

EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "example")


@pytest.fixture(autouse=True)
def count(monkeypatch):
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, EXAMPLE])
    yield
    sys.modules.pop("depixelation.commands.count", None)


def test_a_command_is_one_file(run, refused, capsys):
    assert "count" in commands.commands_of("depixelation") and "count" not in commands.commands_of("denoising")
    assert run("--count", "a", "b") == 0  # of 40 images each 17th is held out, in runs of two
    assert "a, b: 38 images" in capsys.readouterr().out
    assert run("--count", "a", "--unit", "batches") == 0
    assert "a: 3 batches" in capsys.readouterr().out
    refused(run("--count", "a", "--unit", "image"), "unit is", "images, batches (nearest: images)")
    refused(run("--count"), "--count: expected at least one argument")
    refused(run("--count", "a", "--score", "b", "c"), "not allowed with argument")
    refused(entry.main(["--task", "denoising", "--count", "a"]), "there is no option --count")


def test_its_help_is_there(run, capsys):
    assert entry.main(["--help"]) == 0
    assert "--count NAME ..." in (text := capsys.readouterr().out) and "count what there is to train on" in text
    assert entry.main(["--count", "--help"]) == 0
    text = capsys.readouterr().out
    assert "python main.py --count NAME ..." in text
    assert "--unit" in text and 'what is counted (images, batches); default "images"' in text
    assert run("--score", "a", "b", "--unit", "batches") == 2  # there is no file a
    assert "--unit has no effect here; it is an option of --count" in capsys.readouterr().err
