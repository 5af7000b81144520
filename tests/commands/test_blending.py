"""--realism, --refiner and --samples: between accurate and real."""

import os

import numpy as np
import pytest
from conftest import TINY_UNET, save_photo
from PIL import Image

import main as entry
from depixelation.engine import realism
from depixelation.tasks.depixelation import Depixelation
from submission_serialization import deserialize


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with models, accurate, and adversarial and flow, which start from it; a function that calls main()."""
    folder = tmp_path_factory.mktemp("trained")
    outputs = ["--output_dir", str(folder), "--cache_dir", str(folder / "cache")]

    def run(*options):
        return entry.main([*map(str, options), *outputs, *TINY_UNET])

    accurate = folder / "models" / "accurate.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(realism, "STEPS", 5)
        assert run("--name", "accurate", "--epochs", "1") == 0
        assert run("--name", "adversarial", "--epochs", "1", "--init", accurate, "--adversarial", "3") == 0
        assert run("--task", "flow", "--epochs", "1", "--init", accurate, "--name", "flow") == 0
        yield folder, run


def test_predictions_by_realism(trained, tmp_path, refused):
    folder, run = trained
    test_set, models = tmp_path / "r" / "test_set.pkl", folder / "models"
    assert run("--make_test_set", tmp_path / "r", "--synthetic_images", "24") == 0
    written = {}
    for name, more in {
        "plain": [],
        "zero": ["--realism", "0", "--samples", "2", "--refiner", models / "flow.pt"],
        "half": ["--realism", "0.5", "--refiner", models / "flow.pt"],
        "real": ["--realism", "--refiner", models / "flow.pt"],
        "adversarial": ["--realism", "1", "--refiner", models / "adversarial.pt"],
        "itself": ["--model", models / "adversarial.pt"],
    }.items():
        chosen = [] if name == "itself" else ["--model", models / "accurate.pt"]
        path = tmp_path / f"{name}.bin"
        assert run("--predict", "--test_set", test_set, "--submission", path, "--views", "1", *chosen, *more) == 0
        written[name] = np.concatenate(deserialize(path)).astype(int)
    assert np.array_equal(written["plain"], written["zero"]) and np.array_equal(
        written["adversarial"], written["itself"]
    )
    assert np.abs(2 * written["half"] - written["plain"] - written["real"]).max() <= 2
    assert np.abs(written["real"] - written["plain"]).mean() > 1
    assert Image.open(tmp_path / "zero_samples.png").size[0] > 1000 and not os.path.exists(
        tmp_path / "half_samples.png"
    )
    line = ["--predict", "--test_set", test_set, "--model", models / "accurate.pt", "--submission", tmp_path / "x.bin"]
    refused(run(*line, "--samples", "2", "--refiner", models / "adversarial.pt"), "samples", "adversarial.pt")
    refused(run(*line, "--realism", "1", "--refiner", tmp_path / "none.pt"), "none.pt", "--refiner FILE")
    flow = ("--task", "flow", "--network", "FlowUNet", "--init", models / "accurate.pt", "--name", "x")
    refused(run(*flow), "accurate.pt", "(of OddUNet) do not fit FlowUNet")
    refused(run(*line, "--realism", "1.5"), "realism", "at most 1")
    refused(run("--adversarial", "1", "--patience", "2", "--name", "x"), "patience", "last weights")
    assert not (tmp_path / "x.bin").exists()


def test_evaluation_measures_realism(trained, monkeypatch, capsys):
    monkeypatch.setattr(Depixelation, "refiner", "none.pt")
    folder, run = trained
    models = [folder / "models" / f"{name}.pt" for name in ("accurate", "adversarial")]
    refiner = ["--realism", "--refiner", folder / "models" / "flow.pt", "--views", "1"]
    assert run("--evaluate", *models, *refiner, "--synthetic_images", "64", "--name", "real") == 0
    output = capsys.readouterr().out
    assert "accurate.pt, R = 1" in output and "How real rectangles look" in output
    for name in ("tradeoff", "realism"):
        assert Image.open(folder / "losses" / f"real_evaluation_{name}.png").size[0] > 500
    assert run("--evaluate", models[0], "--realism", "--name", "none") == 0  # without a refiner, of the model itself
    assert "classifier" in capsys.readouterr().out and not (folder / "losses" / "none_evaluation_realism.png").exists()
    assert run("--task", "flow", "--evaluate", folder / "models" / "flow.pt", "--init", models[0]) == 0
    assert "flow.pt" in capsys.readouterr().out


def test_possible_originals_of_a_photo(trained, tmp_path):
    folder, run = trained
    save_photo(tmp_path / "a.png", 3, (90, 70))
    options = [
        "--model",
        folder / "models" / "accurate.pt",
        "--refiner",
        folder / "models" / "flow.pt",
        "--samples",
        "2",
    ]
    assert run("--depixelate", tmp_path / "a.png", "--area", "20", "20", "24", "24", *options) == 0
    names = ["a.png", "a_before_after.png", "a_depixelated.png", "a_sample_1.png", "a_sample_2.png", "a_spread.png"]
    assert sorted(os.listdir(tmp_path)) == names
    first, second, spread = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in names[3:])
    inside = np.zeros(spread.shape, dtype=bool)
    inside[20:44, 20:44] = True
    assert (first == second)[~inside].all() and not spread[~inside].any()
    assert spread[inside].mean() == pytest.approx(4 * np.abs(first - second)[inside].mean() / 2, abs=1.5)
