"""What is said to be held out of a model's training was held out of it."""

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import save_photo, some_photos

from depixelation.command_line import read_command_line
from depixelation.engine.models import load_models
from depixelation.images.cache import open_cache
from depixelation.images.holdout import split_by_folder, thumbnail_digests
from submission_serialization import load_test_set
from utils import UserError


@pytest.fixture
def claim(run, capsys, tmp_path):
    """What --evaluate says that it measures on, and what it prints before."""

    def said(*options):
        capsys.readouterr()
        options = ["--evaluate", *options, "--device", "cpu", "--precision", "float32", "--cache_dir", "cache"]
        asked = read_command_line(options)
        models, _, _ = load_models(asked.task, asked.options, asked.operands)
        source = asked.task.evaluation_set(models, asked.options)[1]
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
    cache = open_cache("synthetic", str(tmp_path / "cache"), 0, 100)
    known = np.isin(thumbnail_digests(cache, range(100)), large).sum()
    assert not np.isin(thumbnail_digests(cache, split_by_folder(cache.names, 0.06)[1]), large).all()
    source, printed = claim("models/large.pt", "--synthetic_images", "100")
    assert source == f"{known} drawn images, held out of training" and "warning" not in printed
    source, printed = claim("models/large.pt", "--seed", "5")
    assert source == "all 200 drawn images" and "warning: models/large.pt: trained on synthetic" in printed
    assert run("--epochs", "1", "--name", "next", "--init", "models/large.pt", "--validation_fraction", "0.3") == 0
    assert "warning: a model that this one starts from" in capsys.readouterr().err
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
    cache = open_cache("photos", str(tmp_path / "cache"), 0, 0)
    chosen = split_by_folder(cache.names, 0.3)[1]
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
