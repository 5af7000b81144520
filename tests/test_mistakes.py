"""What a clumsy or hostile user may do: nothing of theirs is replaced, nothing is claimed that is not so."""

import os
import re
import shutil
import stat
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import contents, save_photo, some_photos
from PIL import Image

import main as entry
from datasets import block_means
from submission_serialization import load_test_set
from tasks import areas, challenge, images
from tasks.evaluation import load_models
from tasks.outputs import made_here
from utils import ROOT, UserError

# ------------------------------------------------------------------------------------------------ what is replaced

FOREIGN = {  # command: the files that it would write
    "--make_test_set .": ["test_set.pkl", "targets.bin"],
    "--predict --model model.pt --test_set test.pkl": ["submission.bin", "submission.png"],
    "--zip hand_in.zip --model model.pt": ["hand_in.zip"],
    "--depixelate photo.jpg --model model.pt": ["photo_depixelated.png", "photo_before_after.png"],
    "--depixelate photo.jpg --overwrite --area 9 9 20 20 --model model.pt": ["photo_depixelated.png"],
    "--depixelate photo.jpg --preview --model model.pt": ["photo_preview.png"],
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
        assert files and all(made_here(os.path.join(ROOT, folder, name), kind) for name in files)


def test_outputs_differ_from_inputs(predict, run, refused, model, tmp_path):
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
    refused(run("--pixelate", "photo.jpg", "photo.png"), "photo_pixelated.png: two files")
    shutil.copy("photo.png", "photo_pixelated.png")
    before = contents(tmp_path)
    refused(run("--pixelate", "photo.png", "photo_pixelated.png"), "photo_pixelated.png: would be read")
    assert contents(tmp_path) == before


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
    monkeypatch.setattr(challenge, "restore_all", lambda *arguments: pytest.fail("restored first"))
    (tmp_path / "folder").mkdir()
    os.symlink("loop", "loop")
    refused(predict("--submission", "folder"), "folder: is a folder")
    refused(predict("--submission", os.devnull), "no plain file")
    refused(predict("--submission", "loop"), "loop: is no plain file")
    refused(predict("--submission", "test.pkl/x.bin"), "no folder to write in")
    with monkeypatch.context() as patch:  # as where a drive is missing
        asked = []
        patch.setattr(os.path, "lexists", lambda path: asked.append(path) or len(asked) > 99 and pytest.fail("no end"))
        patch.setattr(os.path, "isdir", lambda path: False)
        refused(predict("--submission", "x/a.bin"), "no folder to write in")
    for options in (["--images", "loop"], ["--init", "loop"], ["--output_dir", "loop/x"]):
        refused(run("--epochs", "1", *options), "loop")
    assert os.path.islink("loop") and stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_link_stays_a_link(predict, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    os.symlink("elsewhere/real.bin", "link.bin")
    assert predict("--submission", "link.bin") == 0
    assert os.path.islink("link.bin") and os.path.isfile("elsewhere/real.bin")


# ------------------------------------------------------------------------------------------------ what is claimed


@pytest.fixture
def claim(run, capsys, tmp_path):
    """What --evaluate says that it measures on, and what it prints before."""

    def said(*options):
        capsys.readouterr()
        options = ["--evaluate", *options, "--device", "cpu", "--precision", "float32", "--cache_dir", "cache"]
        action, operands, task, given = entry.read_command_line(options)
        source = task.evaluation_set(given, load_models(task, given, operands)[0])[1]
        return source.partition(";")[0], capsys.readouterr().out

    return said


def held_out(path):
    return torch.load(path, weights_only=True)["record"][-1]["held_out"].tolist()


def test_held_out_is_said_of_what_was_held_out(run, claim, tmp_path, capsys):
    """Drawn images: another count moves the split, but not the record."""
    assert run("--epochs", "1", "--name", "large", "--synthetic_images", "200") == 0
    assert run("--epochs", "1", "--name", "small") == 0
    large, small = held_out("models/large.pt"), held_out("models/small.pt")
    assert len(large) == 20 and len(small) == 2
    cache = images.open_cache("synthetic", str(tmp_path / "cache"), 0, 100)
    known = np.isin(images.thumbnail_digests(cache, range(100)), large).sum()
    assert not np.isin(images.thumbnail_digests(cache, images.split_by_folder(cache.names, 0.06)[1]), large).all()
    source, printed = claim("models/large.pt", "--synthetic_images", "100")
    assert source == f"{known} drawn images, held out of training" and "warning" not in printed
    source, printed = claim("models/large.pt", "--seed", "5")
    assert source == "all 200 drawn images" and "warning: models/large.pt: trained on synthetic" in printed
    assert run("--epochs", "1", "--name", "next", "--init", "models/large.pt", "--validation_fraction", "0.3") == 0
    assert "warning: a model that this one starts or learns from" in capsys.readouterr().err
    assert run("--epochs", "1", "--name", "same", "--init", "models/large.pt", "--synthetic_images", "200") == 0
    assert "warning" not in capsys.readouterr().err
    both = len(set(large) & set(small))
    if both:
        assert claim("models/large.pt", "models/small.pt")[0] == f"{both} drawn images, held out of training"
    else:
        with pytest.raises(UserError, match="in common"):
            claim("models/large.pt", "models/small.pt")


def test_a_folder_in_front_does_not_move_what_was_held_out(run, claim, tmp_path):
    for i in range(30):
        save_photo(tmp_path / "photos" / f"{1 + i // 5}" / f"{i}.jpg", i, (80, 70))
    cache = images.open_cache("photos", str(tmp_path / "cache"), 0, 0)
    chosen = images.split_by_folder(cache.names, 0.3)[1]
    trained_on = cache.names[next(i for i in range(30) if i not in chosen)]
    shutil.copy(f"photos/{trained_on}", f"photos/{os.path.dirname(cache.names[chosen[0]])}/copy.jpg")
    train = ["--epochs", "1", "--validation_fraction", "0.3"]
    assert run(*train, "--name", "p", "--images", "photos") == 0
    kept = len(held_out("models/p.pt"))
    assert kept == len(chosen)  # without the copy
    assert claim("models/p.pt", "--images", "photos")[0] == f"{kept} images of photos, held out of training"
    some_photos(tmp_path / "photos" / "0", 5, first=50)
    os.rename("photos", "moved")
    source, printed = claim("models/p.pt", "--images", "moved")
    assert source == f"{kept} images of moved, held out of training" and "warning" not in printed
    some_photos(tmp_path / "others", 6, first=70)
    source, printed = claim("models/p.pt", "--images", "others")
    assert source == "all 6 images of others" and "no record shows" in printed
    assert run(*train, "--name", "q", "--init", "models/p.pt", "--images", "others") == 0
    assert claim("models/q.pt", "--images", "moved")[0].startswith(f"{kept} images")  # by its first training
    assert run("--make_test_set", "r", "--images", "moved", "--model", "models/p.pt") == 0
    assert len(load_test_set("r/test_set.pkl")[0]) == kept


def test_a_model_without_record_claims_nothing(run, claim, model):
    """As those of earlier versions, and those that went on from them; nor does a record that makes no sense."""
    state = torch.load(model, weights_only=True)
    digests = state.pop("record")[0]["held_out"]
    torch.save(state, model)
    source, printed = claim("model.pt")
    assert source == "2 drawn images" and "warning: model.pt: trained on synthetic, and no record" in printed
    assert run("--epochs", "1", "--name", "later", "--init", "model.pt") == 0
    source, printed = claim("models/later.pt")
    assert source == "2 drawn images" and "no record" in printed
    for wrong in ([], 3, [{}], [{"images": 3, "held_out": digests}], [{"images": "x", "held_out": [1]}]):
        torch.save({**state, "record": wrong}, model)
        assert "no record" in claim("model.pt")[1]


def test_precision_is_kept_with_the_model(run, model, predict, capsys, monkeypatch):
    """Auto would measure at each start, and could decide otherwise. A much slower one is not kept."""
    state = torch.load(model, weights_only=True)
    assert (state["precision"], state["device"]) == ("float32", "cpu")
    for kept, ratio, chosen in (
        ("float32", 0.7, "float32"),
        ("float32", 0.3, "bfloat16"),
        ("bfloat16", 1.5, "bfloat16"),
        ("bfloat16", 10, "float32"),
    ):
        torch.save({**state, "precision": kept}, model)
        for precision, expected in (("auto", chosen), ("float32", "float32")):
            seconds = iter([[1.0], [ratio]])
            monkeypatch.setattr("timeit.repeat", lambda *arguments, seconds=seconds, **options: next(seconds))
            capsys.readouterr()
            assert predict("--submission", "a.bin", "--precision", precision) == 0
            assert f"cpu, {expected}" in capsys.readouterr().out


@pytest.mark.parametrize("ratio, warned", [(10, True), (1.5, False)])
def test_a_slow_precision_is_warned_of(run, capsys, monkeypatch, ratio, warned):
    seconds = iter([[1.0], [ratio]])
    monkeypatch.setattr("timeit.repeat", lambda *arguments, **options: next(seconds))
    assert run("--epochs", "1", "--precision", "bfloat16") == 0
    assert ("warning: bfloat16 is far slower" in capsys.readouterr().err) == warned


def test_states_of_runs_are_no_models(predict, run, refused, shared):
    state = shared / "models" / "default.last.pt"
    refused(predict("--model", state), "is the state of a run")
    refused(run("--epochs", "1", "--init", state), "is the state of a run")
    refused(run("--evaluate", "model.pt", "--model", "other.pt"), "other.pt", "beside model.pt", "--model")


def test_black_photos_have_no_points_and_no_place(run, tmp_path, capsys):
    (tmp_path / "black").mkdir()
    for i in range(4):
        Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(tmp_path / "black" / f"{i}.png")
    assert run("--evaluate", "--network", "IdentityModel", "--images", "black") == 0
    table = capsys.readouterr().out
    assert re.search(r"^IdentityModel .* - +- ", table, re.M) and "nan" not in table


# ------------------------------------------------------------------------------------------------ options and runs


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
    assert "default.last.pt will be replaced as soon as" in printed and "default.pt will be replaced at" in printed
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


def test_archive_of_a_project_in_a_folder_with_brackets(run, model, tmp_path, monkeypatch):
    (tmp_path / "project[1]" / "tasks").mkdir(parents=True)
    for name in ("main.py", "tasks/images.py"):
        shutil.copy(os.path.join(ROOT, name), tmp_path / "project[1]" / name)
    monkeypatch.setattr(challenge, "ROOT", str(tmp_path / "project[1]"))
    assert run("--zip", "z.zip", "--model", "model.pt") == 0
    with zipfile.ZipFile("z.zip") as file:
        assert {"main.py", "tasks/images.py"} <= set(file.namelist())


# ------------------------------------------------------------------------------------------------ own photos


def test_a_flat_area_is_no_pixelation():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    pixels[:, :60] = 255  # a margin
    pixels[:70, 70:] = 250  # a sky
    area = slice(90, 130), slice(100, 140)
    pixels[area] = np.floor(block_means(pixels[area], 8))
    assert [area.box() for area in areas.find_exact(pixels)] == [area]
    assert areas.find_exact(np.full((50, 50, 1), 7, np.uint8)) == []


@pytest.mark.parametrize("width, height", [(8, 8), (8, 500), (500, 8), (20, 20), (9, 31)])
def test_what_is_pixelated_is_found_also_in_tiny_pictures(run, model, tmp_path, width, height, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(noise).save("tiny.png")
    assert run("--pixelate", "tiny.png") == 0
    assert "--area" not in capsys.readouterr().out
    assert run("--depixelate", "tiny_pixelated.png", "--model", "model.pt") == 0


def test_pixelated_flat_area_is_told(run, tmp_path, capsys):
    Image.new("RGB", (60, 60), "white").save("white.png")
    assert run("--pixelate", "white.png") == 0
    assert "--area 20 20 20 20" in capsys.readouterr().out


def test_block_sizes_of_large_rectangles():
    blocks = np.random.default_rng(0).integers(0, 256, (400, 400, 1))
    for size in (2, 7, 64):
        values = blocks.repeat(size, axis=0)[:900].repeat(size, axis=1)[:, :800]
        started = time.monotonic()
        assert areas.estimate_block_size(values) == size
        assert time.monotonic() - started < 5  # it took 20 s when each size meant a pass over the pixels
