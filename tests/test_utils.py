"""The score, the configuration and files from outside."""

import json
import math
import os
import timeit

import pytest
import torch

import main as entry
from processes import choose_precision
from tasks.depixelation import DepixelationConfig as Config
from tasks.depixelation import training_loss
from tasks.restoration import restore, rmse_per_image
from tasks.training import Run
from utils import ROOT, UserError, atomic_write, config_from_dict, load_checkpoint


def parse(*arguments):
    action, operands, task, given = entry.read_command_line(list(arguments))
    assert operands == []
    return action, task.config, given


def test_score_worked_example():
    """Errors 3 and 4 on the unknown pixels of the first image, 6 on that of the second, large ones on known pixels."""
    images = torch.zeros(2, 1, 1, 3)
    predictions = torch.tensor([[3.0, 4, 99], [99, 6, 99]]).reshape(2, 1, 1, 3)
    known = torch.tensor([[False, False, True], [True, False, True]]).reshape(2, 1, 1, 3)
    per_image = rmse_per_image(predictions.double(), images.double(), known)
    assert per_image.dtype == torch.float64
    assert per_image.tolist() == pytest.approx([math.sqrt(12.5), 6])
    score = per_image.mean().item()
    over_all_unknown_pixels = math.sqrt((9 + 16 + 36) / 3)  # another number: the kind of RMSE matters
    assert score == pytest.approx(4.76777, abs=1e-5) and abs(score - over_all_unknown_pixels) > 0.2
    for kind, expected, of in (("rmse", score, 2), ("mse", 61 / 3, 3)):  # images, unknown pixels
        loss, count = training_loss(kind, predictions / 255, images, known)
        assert loss.item() == pytest.approx(expected, abs=1e-3) and float(count) == of


def test_loss_has_a_gradient_where_the_prediction_is_right():
    predictions = torch.zeros(1, 1, 2, 2, requires_grad=True)
    known_arrays = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    training_loss("rmse", predictions, torch.zeros(1, 1, 2, 2), known_arrays)[0].backward()
    assert predictions.grad.isfinite().all()


def test_restore_clamps_and_rounds():
    outputs = torch.tensor([-3.0, 0.6, 127.4, 127.6, 254.6, 300]).reshape(1, 1, 1, 6) / 255
    pixelated = torch.full((1, 1, 1, 6), 9, dtype=torch.uint8)
    unknown = torch.zeros(1, 1, 1, 6, dtype=torch.bool)
    predictions = restore(lambda inputs: outputs, pixelated, unknown, torch.float32)
    assert predictions.flatten().tolist() == [0, 1, 127, 128, 255, 255]
    assert torch.equal(restore(lambda inputs: outputs, pixelated, ~unknown, torch.float32), pixelated)


def test_score_agrees_with_an_independent_one_to_1e_9():
    """Plain loops in float64, as the challenge's server may do it, on random images and rectangles."""
    generator = torch.Generator().manual_seed(0)
    images, predictions = (
        torch.randint(0, 256, (200, 1, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(2)
    )
    known = torch.ones(200, 1, 64, 64, dtype=torch.bool)
    expected = []
    for i in range(200):
        x, y, width, height = torch.randint(4, 32, (4,), generator=generator).tolist()
        known[i, 0, y : y + height, x : x + width] = False
        pairs = zip(images[i][~known[i]].tolist(), predictions[i][~known[i]].tolist())
        squares = [(float(a) - float(b)) ** 2 for a, b in pairs]
        assert len(squares) == width * height
        expected.append(math.sqrt(math.fsum(squares) / len(squares)))
    score = rmse_per_image(predictions.double(), images.double(), known).mean().item()
    assert abs(score - math.fsum(expected) / 200) < 1e-9


def test_config_file_has_every_key_and_the_defaults():
    with open(os.path.join(ROOT, "config.json"), encoding="utf-8") as file:
        values = json.load(file)
    defaults = Config()
    assert sorted(values) == sorted(vars(defaults)) and values == vars(defaults)
    assert parse()[1].test_set == os.path.join(ROOT, "test_set.pkl")


@pytest.mark.parametrize(
    "key, values",
    [
        ("task", [3, None]),
        ("images", [3, None, ["a"], ""]),
        ("max_images", [0, 1.5, "2"]),
        ("name", ["", "a/b", "..", ".x", 5]),
        ("network", ["ResNet", 1]),
        ("network_options", [[], "x", None, {"channels": [32, 10**5]}, {"channels": 10**400}]),
        ("loss", ["l1", None]),
        ("epochs", [0, -1, 1.5, "3", True, float("nan")]),
        ("max_minutes", [0, -1, "x", float("inf"), float("nan"), 1e308]),
        ("optimizer", ["sgd", None]),
        ("batch_size", [0, None, 2.5, True, 10**9]),
        ("learning_rate", [0, -1e-3, "fast", float("nan"), None, True, 10**400]),
        ("warmup", [-0.1, 1.1]),
        ("decay", [-0.1, 2]),
        ("weight_decay", [-1]),
        ("gradient_clip", [0]),
        ("ema_decay", [-0.1, 1, 1.5]),
        ("crop_scale", [[0.5], [0, 1], [0.9, 0.5], [0.5, 1.5], ["a", "b"], 0.5]),
        ("synthetic_images", [1, None, 10**9]),
        ("validation_fraction", [0, 0.6]),
        ("validate_every", [0, 1.5, None]),
        ("patience", [0, "x"]),
        ("seed", [-1, 2**32, 1.5]),
        ("device", ["gpu", 0]),
        ("precision", ["float16"]),
        ("compile", [1, "yes", None]),
        ("tensorboard", [0, "on", None]),
        ("workers", [-1, 1.5, 10**6]),
        ("init", [1, ""]),
        ("teacher", [1, ""]),
        ("teacher_share", [0, 1.1, None]),
        ("model", [1]),
        ("views", [0, 9, None, 1.5]),
        ("adversarial", [-1, 1001, None]),
        ("realism", [-0.1, 1.1, "no", None]),
        ("refiner", [3, ""]),
        ("samples", [1, 101, 2.5]),
        ("test_set", [None, ""]),
        ("submission", [None, 3]),
        ("area", [[1, 2, 3], "1 2 3 4", [1, 2, 3, -4], [1, 2, 3, 4.5], 7]),
        ("sensitivity", [0, 1, "high"]),
        ("output", [3, ""]),
        ("overwrite", [1, "yes"]),
        ("preview", [0, None]),
        ("json", ["x"]),
        ("block_size", [1, 2.5, "x"]),
        ("grid", ["photo", None]),
        ("average", ["mean", 1]),
        ("quality", [0, 101, "best"]),
        ("cache_dir", [None]),
        ("output_dir", [None, "a\0b"]),
    ],
)
def test_every_key_refuses_wrong_values(key, values):
    for value in values:
        with pytest.raises(UserError) as error:
            config_from_dict(Config, {key: value}, "some.json")
        message = str(error.value)
        assert message.startswith("some.json: ") and key in message and "must be" in message and "\n" not in message


def test_every_key_is_tested_above():
    parameters = test_every_key_refuses_wrong_values.pytestmark[0].args[1]
    assert {key for key, _ in parameters} == set(vars(Config()))


def test_options_override_the_file(tmp_path):
    path = tmp_path / "my.json"
    path.write_text('{"epochs": 7, "batch_size": 8, "test_set": "a.pkl", "images": "synthetic"}')
    action, config, given = parse(
        "--config", str(path), "--epochs", "3", "--max_minutes", "none", "--crop_scale", "[0.5, 1]"
    )
    assert (action, config.epochs, config.batch_size, config.max_minutes, config.crop_scale) == (
        None,
        3,
        8,
        None,
        [0.5, 1],
    )
    assert given == {"epochs", "max_minutes", "crop_scale"}
    assert config.test_set == str(tmp_path / "a.pkl") and config.images == "synthetic"  # from the file's folder
    assert parse("--config", str(path), "--images", "photos.zip")[1].images == os.path.abspath(
        "photos.zip"
    )  # from here
    assert parse("--config", str(path), "--predict", "--name", "3")[1].name == "3"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["--lerning_rate=1"], ["--lerning_rate", "--learning_rate"]),
        (["--epochs", "three"], ["epochs", "three", "whole number"]),
        (["photos.zip"], ["photos.zip"]),
        (["--network", "BasicCCN"], ["network", "BasicCNN"]),
        (["--config", "missing.json"], ["missing.json"]),
        (["--predict", "--summary"], ["--summary"]),
        (["--epochs"], ["--epochs"]),
    ],
)
def test_wrong_options(arguments, words):
    with pytest.raises(UserError) as error:
        parse(*arguments)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"epochs": 3,}', ["my.json", "JSON"]),
        ("[1]", ["my.json", "object"]),
        ('{"epcohs": 3}', ["epcohs", "epochs"]),
        ('{"learning_rate": NaN}', ["learning_rate", "NaN"]),
    ],
)
def test_wrong_config_files(tmp_path, text, words):
    path = tmp_path / "my.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        parse("--config", str(path))
    assert all(word in str(error.value) for word in words)


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["file"]


def test_a_full_disk_names_the_file(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "file") as file:
        with open("/dev/full", "wb", buffering=0) as full:
            file.write(b"x")
            full.write(b"x")
    assert error.value.filename == str(tmp_path / "file") and not os.listdir(tmp_path)


def test_loss_that_is_not_finite():
    run = Run(step=20)
    run.begin(Config(learning_rate=0.1), 8)
    run.check(1.5)
    with pytest.raises(UserError, match="learning_rate: the loss became nan in epoch 3, at or before step 20"):
        run.check(math.nan)


def test_precision_is_measured(monkeypatch):
    assert choose_precision("float32", torch.device("cpu")) == torch.float32
    for other, chosen in ((0.5, torch.bfloat16), (1.5, torch.float32)):
        seconds = iter([[1.0, 3.0], [other, 3.0]])
        monkeypatch.setattr(timeit, "repeat", lambda *arguments, **options: next(seconds))
        assert choose_precision("auto", torch.device("cpu")) == chosen


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_checkpoints_that_are_none(tmp_path):
    torch.save({"weights": {}}, tmp_path / "other.pt")
    torch.save({"config": Hostile(), "weights": {}}, tmp_path / "hostile.pt")
    (tmp_path / "text.pt").write_text("x")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("other.pt", "hostile.pt", "text.pt", "empty.pt", "missing.pt"):
        with pytest.raises(UserError, match=f"{name}.*; train one") as error:
            load_checkpoint(str(tmp_path / name), "train one")
        assert "\n" not in str(error.value)
    assert not os.path.exists("executed")
