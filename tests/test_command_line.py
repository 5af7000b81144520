"""The configuration, the command line, and the values that they may have."""

import os

import pytest

from depixelation.command_line import option_owners, read_command_line
from depixelation.commands import commands_of
from depixelation.tasks.depixelation import Depixelation
from utils import ROOT, UserError, check_value, config_from_dict, key_types, read_config_file

Config = Depixelation.Config
OPTIONS = option_owners(Config, commands_of("depixelation"), Depixelation)


def parse(*arguments):
    request = read_command_line(list(arguments))
    assert request.operands == []
    return request


def test_config_file_has_the_defaults():
    values = read_config_file(os.path.join(ROOT, "config.json"))
    assert values.items() <= vars(Config()).items() and len(values) > 15
    assert parse("--predict").options.test_set == os.path.join(ROOT, "test_set.pkl")


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
        ("tensorboard", [0, "on", None]),
        ("workers", [-1, 1.5, 10**6]),
        ("init", [1, ""]),
        ("model", [1]),
        ("views", [0, 11, 1.5]),
        ("adversarial", [-1, 1001, None]),
        ("realism", [-0.1, 1.1, "no", None]),
        ("refiner", [3, ""]),
        ("samples", [1, 101, 2.5]),
        ("test_set", [None, ""]),
        ("submission", ["", 3]),
        ("area", [[1, 2, 3], "1 2 3 4", [1, 2, 3, -4], [1, 2, 3, 4.5], 7]),
        ("sensitivity", [0, 1, "high"]),
        ("output", [3, ""]),
        ("overwrite", [1, "yes"]),
        ("preview", [0, None]),
        ("json", ["x"]),
        ("block_size", [1, 2.5, "x"]),
        ("mask", ["", 3]),
        ("masks", [1, "yes"]),
        ("page", [1, "yes"]),
        ("grid", ["photo", None]),
        ("average", ["mean", 1]),
        ("quality", [0, 101, "best"]),
        ("sheet", [3, ""]),
        ("cache_dir", [None]),
        ("output_dir", [None, "a\0b"]),
    ],
)
def test_every_key_refuses_wrong_values(key, values):
    for value in values:
        with pytest.raises(UserError) as error:
            if key in key_types(Config):
                config_from_dict(Config, {key: value}, "some.json")
            else:
                check_value(OPTIONS[key][0], key, value, "some.json")
        message = str(error.value)
        assert message.startswith("some.json: ") and key in message and "must be" in message and "\n" not in message


def test_every_key_is_tested_above():
    parameters = test_every_key_refuses_wrong_values.pytestmark[0].args[1]
    assert {key for key, _ in parameters} == set(OPTIONS)


def test_options_override_the_file(tmp_path, capsys):
    path = tmp_path / "my.json"
    path.write_text('{"epochs": 7, "batch_size": 8, "init": "a.pt", "images": "synthetic", "test_set": "a.pkl"}')
    ends = "--epochs", "3", "--max_minutes", "none"
    request = parse("--config", str(path), *ends, "--crop_scale", "[0.5, 1]")
    config = request.task.config
    assert (request.command, config.epochs, config.batch_size, config.max_minutes) == (None, 3, 8, None)
    assert config.crop_scale == [0.5, 1] and request.named == {"epochs": 3, "max_minutes": None, "crop_scale": [0.5, 1]}
    assert config.init == str(tmp_path / "a.pt") and config.images == "synthetic"  # from the file's folder
    assert "my.json: test_set: no longer part of a configuration" in capsys.readouterr().err
    photos = parse("--config", str(path), "--images", "photos.zip").task.config.images
    assert photos == os.path.abspath("photos.zip")  # from here
    request = parse("--config", str(path), "--predict", "--name", "3", "--test_set", "b.pkl")
    assert request.task.config.name == request.options.name == "3"
    assert request.options.test_set == os.path.abspath("b.pkl")


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
