"""Options that make no sense, and runs that are found again."""

import os
import shutil

import torch
from conftest import some_photos

import main as entry


def test_numbers_out_of_all_proportion(run, refused):
    unet = ["--network", "ResidualUNet", "--network_options", '{"channels": [8], "blocks": [1], "margin": -8}']
    refused(run("--epochs", "1", *unet), "margin must be 0")
    refused(run("--max_minutes", "1e308"), "max_minutes")
    for digits in (400, 5000):
        refused(run("--epochs", "9" * digits), "epochs")


def test_a_run_out_of_patience_is_finished(run, refused):
    slow = ["--patience", "1", "--learning_rate", "1e-9", "--epochs", "30"]
    assert run(*slow) == 0
    refused(run("--resume"), "is finished", "--patience")
    epochs = len(open("losses/default.csv").readlines())
    assert run("--resume", "--patience", "4") == 0
    assert len(open("losses/default.csv").readlines()) > epochs


def test_a_moved_project_leaves_the_old_place_alone(run, tmp_path, shared):
    assert run("--epochs", "1", "--cache_dir", tmp_path / "old" / "cache") == 0
    shutil.rmtree(tmp_path / "old")
    assert entry.main(["--resume", "--epochs", "2", "--output_dir", str(tmp_path)]) == 0
    assert not os.path.exists(tmp_path / "old")


def test_the_config_of_a_model_finds_the_images_where_one_is(run, tmp_path):
    some_photos(tmp_path / "mine", 6)
    assert run("--epochs", "1", "--images", "mine", "--name", "a") == 0
    assert run("--config", "models/a.json", "--name", "b") == 0


def test_printed_commands_can_be_typed(run, refused, tmp_path):
    assert run("--epochs", "1", "--name", "a b") == 0
    state = torch.load("models/a b.last.pt", weights_only=True)
    state["run"]["finished"] = False
    torch.save(state, "models/a b.last.pt")
    refused(run("--epochs", "1", "--name", "a b"), "--resume --name 'a b'")


def test_what_a_run_will_replace_is_said(run, capsys):
    assert run("--epochs", "1") == 0 and "will be replaced" not in capsys.readouterr().out
    assert run("--epochs", "1") == 0
    printed = capsys.readouterr().out
    assert "default.last.pt will be replaced as soon as" in printed and "will be replaced when it validates" in printed
    state = torch.load("models/default.last.pt", weights_only=True)
    state["run"] |= {"rows": [], "best": None, "finished": False}
    torch.save(state, "models/default.last.pt")
    assert run("--resume", "--epochs", "2") == 0 and "may be another run's" in capsys.readouterr().out
    assert run("--resume", "--epochs", "3") == 0 and "will be replaced" not in capsys.readouterr().out


def test_variables_left_in_the_environment(run, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("RANK", "x")):
        monkeypatch.setenv(name, value)
        assert run("--epochs", "1", "--name", f"{name}{value}") == 0
        monkeypatch.delenv(name)
    assert os.path.exists("models/RANK1.pt")
