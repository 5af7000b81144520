"""Nothing of the user's is replaced: files are written only where the program itself wrote one, or none was."""

import os
import shutil
import stat
import zipfile

import pytest
from conftest import contents, save_photo, some_photos

import main as entry
from depixelation.commands import predict as predict_command
from depixelation.engine.outputs import written_by_us
from depixelation.mosaics import rectangle_tasks
from submission_serialization import deserialize
from utils import ROOT

FOREIGN = {  # command: the files that it would write
    "--make_test_set .": ["test_set.pkl", "targets.bin"],
    "--predict --model model.pt --test_set test.pkl": ["submission.bin", "submission.png"],
    "--zip hand_in.zip --model model.pt": ["hand_in.zip"],
    "--depixelate photo.jpg --model model.pt": ["photo_depixelated.png", "photo_before_after.png"],
    "--depixelate photo.jpg --overwrite --area 9 9 20 20 --model model.pt": ["photo_depixelated.png"],
    "--depixelate photo.jpg --preview --masks --model model.pt": ["photo_preview.png", "photo_mask.png"],
    "--depixelate photo.jpg --page --model model.pt": ["depixelated.html"],
    "--pixelate photo.jpg": ["photo_pixelated.png"],
    "--epochs 1": ["models/default.pt", "models/default.json", "models/default.last.pt", "models/default.lock"]
    + ["losses/default.csv", "losses/default.png", "losses/default_samples.png"],
    "--evaluate model.pt": ["losses/default_evaluation.csv", "losses/default_evaluation_samples.png"],
    "--compare default": ["losses/default_compared.png"],
}


@pytest.mark.parametrize(
    "command, path", [(command, path) for command, paths in FOREIGN.items() for path in paths], ids=str
)
def test_no_command_replaces_a_file_that_the_program_did_not_make(predict, run, refused, tmp_path, command, path):
    save_photo(tmp_path / "photo.jpg", 1, (80, 70))
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(b"the user's")
    before = contents(tmp_path)
    words = command.split()
    words += ["--submission", "submission.bin"] if words[0] == "--predict" else []
    refused(run(*words), os.path.basename(path), "this program")
    assert contents(tmp_path) == before


def test_other_tasks_replace_nothing_either(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "mine.jpg", 1, (80, 70))
    (tmp_path / "losses").mkdir()
    shutil.copy("mine.jpg", "losses/classification_predictions.png")
    before = contents(tmp_path)
    options = ["--output_dir", str(tmp_path), "--device", "cpu"]
    refused(entry.main(["--task", "denoising", "--evaluate", "--sheet", "mine.jpg", *options]), "mine.jpg")
    refused(entry.main(["--task", "classification", "--predict", "mine.jpg", *options]), "_predictions.png")
    assert contents(tmp_path) == before


def test_what_the_program_made_is_replaced(predict, run, tmp_path, capsys):
    """Twice the same: but a file of another kind, or one that has been changed since, is not replaced."""
    save_photo(tmp_path / "photo.jpg", 1, (80, 70))
    for _ in range(2):
        assert predict("--submission", "a.bin") == 0
        assert run("--epochs", "1") == run("--evaluate", "model.pt") == run("--compare", "default") == 0
        assert run("--make_test_set", "rehearsal") == run("--zip", "z.zip", "--model", "model.pt") == 0
        assert run("--pixelate", "photo.jpg") == run("--depixelate", "photo_pixelated.png", "--model", "model.pt") == 0
    with zipfile.ZipFile("z.zip") as file:
        assert file.testzip() is None and "main.py" in file.namelist()
    shutil.copy("photo_pixelated.png", "b.zip")
    assert run("--zip", "b.zip", "--model", "model.pt") == 2
    (tmp_path / "a.bin").write_bytes(b"another's submission")
    assert predict("--submission", "a.bin") == 2
    os.remove("a.png")
    assert predict("--submission", "a.bin") == 2 and (tmp_path / "a.bin").read_bytes() == b"another's submission"


def test_shipped_files_are_known_as_made_by_the_program():
    for folder, suffix, kind in (
        ("models", ".pt", "model"),
        ("models", ".json", "config"),
        ("losses", ".png", "picture"),
    ):
        files = [name for name in os.listdir(os.path.join(ROOT, folder)) if name.endswith(suffix)]
        assert files and all(written_by_us(os.path.join(ROOT, folder, name), kind) for name in files)


def test_outputs_differ_from_inputs(predict, run, refused, model, tmp_path, capsys):
    save_photo(tmp_path / "photo.jpg", 1, (80, 70))
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "photo.png")
    os.symlink("test.pkl", "link.pkl")
    (tmp_path / "models").mkdir()
    shutil.copy(model, "models/mine.pt")
    (tmp_path / "models" / "mine.json").write_text('{"name": "mine"}')
    before = contents(tmp_path)
    refused(run("--zip", "model.pt", "--model", "model.pt"), "model.pt: would be read")
    refused(predict("--submission", "test.pkl"), "test.pkl: would be read")
    refused(predict("--submission", "link.pkl"), "link.pkl: would be read")
    refused(predict("--submission", "model.pt"), "model.pt: would be read")
    refused(predict("--submission", "sub.png"), "sub.png: two files")
    refused(run("--epochs", "1", "--name", "mine", "--init", "models/mine.pt"), "mine.pt: would be read")
    refused(run("--epochs", "1", "--config", "models/mine.json"), "mine.json: would be read")
    assert contents(tmp_path) == before
    shutil.copy("photo.png", "photo_pixelated.png")
    (tmp_path / "photo.jpg").unlink()
    before = contents(tmp_path)
    assert run("--pixelate", "photo.png", "photo_pixelated.png") == 1  # the other photo is done
    assert "photo_pixelated.png: would be read" in capsys.readouterr().err
    assert contents(tmp_path).items() >= before.items()


def test_written_pictures_do_not_become_photos(run, refused, tmp_path):
    some_photos(tmp_path / "photos", 6)
    before = contents(tmp_path)
    refused(run("--epochs", "1", "--images", "photos", "--output_dir", "photos"), "output_dir", "photos/losses")
    refused(run("--evaluate", "--network", "IdentityModel", "--images", "."), "output_dir")
    assert contents(tmp_path) == before


def test_a_run_has_no_name_that_is_another_run_s_file(run, refused):
    for name in ("a.last", "a_samples", "a_evaluation", "a_compared"):
        refused(run("--epochs", "1", "--name", name), "name", "end in")


def test_folders_devices_and_loops_are_found_before_the_work(predict, run, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_command, "restore_all", lambda *arguments: pytest.fail("restored first"))
    (tmp_path / "folder").mkdir()
    os.symlink("loop", "loop")
    refused(predict("--submission", "folder"), "folder: is a folder")
    refused(predict("--submission", os.devnull), "no plain file")
    refused(predict("--submission", "loop"), "loop: is no plain file")
    refused(predict("--submission", "test.pkl/x.bin"), "no folder to write in")
    with monkeypatch.context() as patch:  # as where a drive is missing
        asked = []
        patch.setattr(os.path, "lexists", lambda path: asked.append(path) or len(asked) > 99 and pytest.fail("no end"))
        isdir = os.path.isdir
        patch.setattr(os.path, "isdir", lambda path: isdir(path) and str(path).startswith(ROOT))
        refused(predict("--submission", "x/a.bin"), "no folder to write in")
    for options in (["--images", "loop"], ["--init", "loop"], ["--output_dir", "loop/x"]):
        refused(run("--epochs", "1", *options), "loop")
    assert os.path.islink("loop") and stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_appears_in_the_meantime_is_kept_and_the_work_too(predict, tmp_path, monkeypatch, capsys):
    restore_all = predict_command.restore_all

    def slowly(*arguments):
        (tmp_path / "a.bin").write_bytes(b"the user's")
        return restore_all(*arguments)

    (tmp_path / "a_2.png").write_bytes(b"the user's, too")
    before = contents(tmp_path)
    monkeypatch.setattr(predict_command, "restore_all", slowly)
    assert predict("--submission", "a.bin") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line and "a.bin" in line]
    assert "this program made it" in line and "a_3.bin is written instead" in line
    assert (tmp_path / "a.bin").read_bytes() == b"the user's" and not (tmp_path / "a.png").exists()
    assert len(deserialize("a_3.bin")) == 4 and written_by_us("a_3.png", "picture")
    assert contents(tmp_path).items() >= before.items()


def test_what_appears_while_a_run_trains_is_kept_and_the_run_too(run, refused, tmp_path, monkeypatch, capsys):
    def appearing(path):
        loss = rectangle_tasks.training_loss

        def training_loss(*arguments):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(b"the user's")
            return loss(*arguments)

        return training_loss

    with monkeypatch.context() as patch:
        patch.setattr(rectangle_tasks, "training_loss", appearing("models/default.pt"))
        refused(run("--epochs", "1"), "default.pt", "this program made it", "--resume --name default")
    assert sorted(os.listdir("models")) == ["default.last.pt", "default.pt"]
    os.replace("models/default.pt", "mine.pt")
    with monkeypatch.context() as patch:
        patch.setattr(rectangle_tasks, "training_loss", appearing("losses/default.csv"))
        assert run("--resume") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "default.csv" in line and "this program made it" in line
    assert [(tmp_path / name).read_bytes() for name in ("mine.pt", "losses/default.csv")] == [b"the user's"] * 2
    assert written_by_us("models/default.pt", "model")


def test_a_link_stays_a_link(predict, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    os.symlink("elsewhere/real.bin", "link.bin")
    assert predict("--submission", "link.bin") == 0
    assert os.path.islink("link.bin") and os.path.isfile("elsewhere/real.bin")
