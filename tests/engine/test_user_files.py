"""Files of the user's that get in the way: none is replaced, followed or waited for, and a line says which it is."""

import json
import os
import shutil
import zipfile

import pytest
import torch

import main as entry
from depixelation.engine.outputs import written_by_us
from utils import TEMPORARY, UserError, atomic_write, load_checkpoint, locked, save_checkpoint


def test_temporary_files_have_names_of_their_own(tmp_path):
    """A file, a link or a pipe called X.tmp is the user's; what a killed process left behind goes."""
    target, elsewhere = tmp_path / "x.pt", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    os.symlink(elsewhere, f"{target}.tmp")
    with atomic_write(target) as file:
        (name,) = [path for path in os.listdir(tmp_path) if path.endswith(TEMPORARY)]
        file.write(b"new")
    assert target.read_bytes() == b"new" and not target.is_symlink() and elsewhere.read_bytes() == b"mine"
    (tmp_path / name).write_bytes(b"abandoned")
    (tmp_path / f".{'0' * 16}-12345678{TEMPORARY}").write_bytes(b"of another file")
    with pytest.raises(ZeroDivisionError), atomic_write(target):
        raise ZeroDivisionError
    assert target.read_bytes() == b"new" and not (tmp_path / name).exists()
    assert [path for path in os.listdir(tmp_path) if path.endswith(TEMPORARY)] == [f".{'0' * 16}-12345678{TEMPORARY}"]


@pytest.mark.parametrize("kind", ["pipe", "link", "text"])
def test_what_is_in_the_way_of_a_lock_is_named(tmp_path, kind):
    path = tmp_path / "run.lock"
    {"pipe": os.mkfifo, "link": lambda p: os.symlink("nowhere", p), "text": lambda p: p.write_text("x")}[kind](path)
    with pytest.raises(UserError, match="run.lock: is in the way of a lock"), locked(str(path), "wait"):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_are_not_waited_for(run, refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for words in (
        ["--predict", "--model", "pipe"],
        ["--predict", "--model", str(tmp_path / "pipe"), "--test_set", "pipe"],
        ["--config", "pipe"],
        ["--init", "pipe", "--epochs", "1"],
    ):
        refused(run(*words), "pipe", "no plain file")


FOREIGN = {
    "config": json.dumps({"validation_fraction": 0.1, "max_iter": 200, "random_state": 0}),  # of scikit-learn
    "log": "model,price,year\nFiesta,9000,2016\n",
    "model": "PK validation_fraction network_options",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_do_not_pass_for_ours(tmp_path, kind):
    path = tmp_path / "file"
    path.write_text(FOREIGN[kind])
    assert not written_by_us(path, kind)


def test_our_own_files_do(shared):
    assert written_by_us(shared / "models" / "default.pt", "model")
    assert written_by_us(shared / "models" / "default.last.pt", "model")
    assert written_by_us(shared / "models" / "default.json", "config")
    assert written_by_us(shared / "losses" / "default.csv", "log")


def test_the_run_that_is_named_goes_on(run, shared, tmp_path):
    """A copy of another run's state writes the files of its own name."""
    (tmp_path / "models").mkdir()
    shutil.copy(shared / "models" / "default.last.pt", tmp_path / "models" / "copy.last.pt")
    assert run("--resume", "--name", "copy", "--epochs", "2") == 0
    assert (tmp_path / "models" / "copy.pt").exists() and not (tmp_path / "models" / "default.pt").exists()


def test_a_run_says_which_files_it_replaces(run, capsys):
    assert run("--epochs", "1") == 0
    capsys.readouterr()
    assert run("--epochs", "1") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "will be replaced" in line]
    names = ("default.last.pt", "default.pt", "default.json", "default.csv", "default.png", "default_samples.png")
    assert len(lines) == 2 and all(name in "".join(lines) for name in names)


def test_exchanged_photos_of_the_same_names_are_noticed(run, photos, refused, tmp_path):
    shutil.copytree(photos, tmp_path / "mine")
    assert run("--images", "mine", "--epochs", "1") == 0
    first, second = sorted((tmp_path / "mine").rglob("*.jpg"))[:2]
    (tmp_path / "spare").write_bytes(first.read_bytes())
    first.write_bytes(second.read_bytes())
    second.write_bytes((tmp_path / "spare").read_bytes())
    refused(run("--resume", "--epochs", "2"), "images: ", "no longer holds the same photos")


def test_a_folder_called_synthetic_is_no_drawn_images(run, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "synthetic")
    assert run("--images", "./synthetic", "--epochs", "1") == 0
    saved = torch.load(tmp_path / "models" / "default.pt", weights_only=True)
    assert saved["record"][-1]["images"] != "synthetic" and saved["config"]["images"] != "synthetic"


def test_weights_that_are_not_finite_are_refused(run, model, refused):
    saved = torch.load(model, weights_only=True)
    next(iter(saved["weights"].values())).fill_(float("nan"))
    torch.save(saved, model)
    refused(run("--evaluate", "model.pt"), "model.pt", "not finite", "--learning_rate")


@pytest.mark.parametrize("kind", ["sparse", "meta", "endless"])
def test_strange_records_are_ignored(run, model, kind):
    """No number that is repeated without end, and none that is not there."""
    saved = torch.load(model, weights_only=True)
    strange = {
        "sparse": torch.eye(3, dtype=torch.int64).to_sparse(),
        "meta": torch.empty(3, dtype=torch.int64, device="meta"),
        "endless": torch.zeros(1, dtype=torch.int64).expand(10**10),
    }
    saved["record"][-1]["held_out"] = strange[kind]
    torch.save(saved, model)
    assert run("--evaluate", "model.pt") == 0


def test_a_small_file_that_unpacks_to_much_is_no_model(tmp_path):
    save_checkpoint({"config": {}, "weights": {"a": torch.zeros(10**6)}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "deflated.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert load_checkpoint(tmp_path / "plain.pt", "")["weights"]
    with pytest.raises(UserError, match="deflated.pt"):
        load_checkpoint(tmp_path / "deflated.pt", "")


@pytest.mark.parametrize(
    "words",
    [
        ["--network_options", "[" * 100_000],
        ["--name", "\ud800"],
        ["--validation_fraction", "1e-10", "--name", "\udcff\ud800"],
    ],
    ids=["deep", "surrogate", "mixed"],
)
def test_strange_text_is_one_line(words, refused):
    refused(entry.main(words), words[-2][2:])


def test_names_of_files_keep_to_one_line(tmp_path, capsys):
    assert entry.main(["--pixelate", str(tmp_path / "two\nlines\x1b[2J.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "two\\nlines\\x1b[2J.png: No such file" in line


def test_a_tiny_fraction_ends(run):
    assert run("--epochs", "1", "--validation_fraction", "1e-10") == 0


def test_a_log_without_epochs_is_refused(run, refused, tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "other.csv").write_text("train_loss,score\n1,2\n")
    refused(run("--compare", "other"), "other.csv", "no columns epoch and minutes")
