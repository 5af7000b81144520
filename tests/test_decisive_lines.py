"""Lines that a slip would turn around, and that no other test would miss."""

import numpy as np
import pytest
import torch
from torch import nn

import main as entry
from architectures import ResidualUNet, SubPixelResNet
from datasets import CachedCrops, CachedPixelationDataset
from depixelation.block_grid import BlockGrid
from depixelation.commands.depixelate import load_finder
from depixelation.engine.learner import Learner
from depixelation.engine.options import ModelOptions
from depixelation.engine.processes import Processes
from depixelation.mosaics import finder as finding_areas
from depixelation.mosaics.finder import Finder
from depixelation.symmetry import SYMMETRIES
from depixelation.tasks import load_task
from depixelation.tasks.depixelation import Depixelation
from depixelation.tasks.super_resolution import SuperResolution


class Stand:
    """Stands for a Learner: calls a function, and has attributes."""

    def __init__(self, function, **attributes):
        self.function = function
        self.__dict__ |= attributes

    def __call__(self, *arguments, **options):
        return self.function(*arguments, **options)


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("higher, kept", [(False, [1, 2]), (True, [1, 3])])
def test_the_best_model_is_kept(run, monkeypatch, higher, kept):
    scores, saved, validate = iter([10, 5, 20]), [], Depixelation.validate

    def with_score(task, predictor):
        figures, *rest = validate(task, predictor)
        return {**figures, "score": next(scores)}, *rest

    monkeypatch.setattr(Depixelation, "validate", with_score)
    monkeypatch.setattr(Depixelation, "higher_is_better", higher)
    monkeypatch.setattr(entry, "save_model", lambda config, task, run, *_: saved.append(len(run.rows)))
    assert run("--epochs", "3") == 0 and saved == kept


@pytest.mark.parametrize("name", ["depixelation", "super_resolution", "files", "finding"])
def test_what_is_held_out_is_not_trained_on_and_the_same_for_all_seeds(name, tmp_path, photos):
    kind = load_task(name)
    task = kind(kind.Config(images=str(photos), cache_dir=str(tmp_path), validation_fraction=0.2))
    task.prepare()
    trained, held_out = set(task.training_set.names), set(task.validation_set.names)
    assert trained and held_out and not trained & held_out
    again = kind(kind.Config(images=str(photos), cache_dir=str(tmp_path), validation_fraction=0.2, seed=1))
    again.prepare()
    one, other = (np.asarray(each.validation_set[0][0]) for each in (task, again))
    assert np.array_equal(one, other)  # runs of any seed are measured on the same


def test_gradients_are_clipped():
    config, network = Depixelation.Config(gradient_clip=0.5), nn.Linear(3, 1)
    learner = Learner(network, config, torch.float32, Processes())
    learner.step(1000 * learner(torch.ones(2, 3)).mean(), 2, 0.0)
    assert torch.cat([p.grad.flatten() for p in network.parameters()]).norm() == pytest.approx(0.5, rel=1e-4)


def test_a_network_is_rewarded_for_misleading_the_discriminator():
    """Here one that takes light images for real."""

    def judge(maps):
        return maps[:, :1], []

    task = Depixelation(Depixelation.Config(adversarial=1.0))
    task.discriminator = Stand(judge, frozen=judge, steps=1)
    known, inside, losses = torch.ones(2, 2, 16, 16), torch.ones(2, 1, 16, 16), []
    for value in (0.2, 0.8):
        restored, truth = (torch.full((2, 1, 16, 16), level, requires_grad=True) for level in (value, 0.5))
        found = task.generator_loss(restored.sum() * 0, restored, truth.detach(), known, inside)
        found["train_loss"].backward()
        assert restored.grad.max() < 0  # lighter is better
        losses.append((found["adversarial_loss"].item(), task.discriminator_loss()[0]["discriminator_loss"].item()))
    (dark, caught), (light, misled) = losses
    assert light < dark and caught < misled


# ------------------------------------------------------------------------------------------------ symmetries


class OneImage:
    names, thumbnails = ["a"], np.zeros((1, 64, 64), np.uint8)

    def __init__(self, image):
        self.image = image

    def __getitem__(self, index):
        return self.image


def test_training_images_are_flipped():
    image = np.zeros((96, 96), np.uint8)
    image[:, 48:] = 255
    dataset = CachedPixelationDataset(OneImage(image), [0], 0, (0.99, 1.0))
    lit = [bool(dataset._augment(image, np.random.default_rng(i))[32, 60] > 127) for i in range(60)]
    assert 15 < sum(lit) < 45


def test_training_crops_are_turned_and_flipped():
    image = np.zeros((24, 24, 3), np.uint8)
    image[:12, :12], image[:12, 12:], image[12:, :12] = 200, 100, 50
    options = {"size": 16, "jitter": 0, "downscaling": "bicubic", "antialias": True}
    dataset = CachedCrops(OneImage(image), [0], 0, 200, **options)
    corners = {tuple((dataset[0, i][1][0, ::15, ::15].flatten() // 40).tolist()) for i in range(100)}
    assert len(corners) == 8


def test_training_sees_all_symmetries():
    network, views = ResidualUNet((8, 8), (1, 1)), []

    def predict(inputs, **options):
        views.extend(options["views"])
        return inputs[:, :1]

    images, known = torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64, dtype=bool)
    known[..., 20:30, 20:30] = False
    task = Depixelation(Depixelation.Config())
    for _ in range(100):
        task.loss(Stand(predict, network=network), (images, known, images))
    assert set(views) == set(range(8)) and network.VIEWS == SYMMETRIES


def test_super_resolution_averages_eight_views():
    torch.manual_seed(0)
    network, images = SubPixelResNet(8, 1).eval(), torch.rand(1, 3, 12, 16)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    views = []
    for turns in range(4):
        for mirrored in (False, True):
            seen = torch.rot90(images.flip(3) if mirrored else images, turns, (2, 3))
            back = torch.rot90(network(seen), -turns, (2, 3))
            views.append(back.flip(3) if mirrored else back)
    config = SuperResolution.Config()
    predictor = SuperResolution(config).predictor(network, config, torch.float32, ModelOptions(views=8))
    assert torch.allclose(predictor(images), torch.stack(views).mean(0), atol=1e-5)
    assert not torch.allclose(predictor(images), torch.stack(views[:7]).mean(0), atol=1e-5)


# ------------------------------------------------------------------------------------------------ areas


def test_more_sensitivity_finds_more(monkeypatch):
    cells = np.zeros((10, 50, 50), np.float16)
    cells[0, 10:20, 10:20], cells[5:7] = 0.4, 3
    distance = np.log2(np.abs(np.arange(50) * 4 + 2 - 40) + 2), np.log2(np.abs(np.arange(50) * 4 + 2 - 80) + 2)
    cells[1], cells[2], cells[3], cells[4] = distance[0], distance[0][:, None], distance[1], distance[1][:, None]
    monkeypatch.setattr(finding_areas, "predict_cells", lambda *_: cells)
    photo = np.zeros((200, 200, 1), np.uint8)
    found = [len(Finder(None, fit=False, sensitivity=value)(photo)) for value in (0.1, 0.95)]
    assert found == [0, 1] and Finder(None, sensitivity=0.1).least > Finder(None, sensitivity=0.9).least
    assert load_finder(0.9, torch.device("cpu"), torch.float32).sensitivity == 0.9


def test_the_margin_of_tiles_holds_what_a_cell_depends_on(monkeypatch):
    finder = load_finder(0.5, torch.device("cpu"), torch.float32)
    luma = np.random.default_rng(0).integers(0, 256, (320, 320)).astype(np.uint8)
    cells = []
    for tile in (320, 160):
        monkeypatch.setattr(finding_areas, "TILE", tile)
        cells.append(finding_areas.predict_cells(finder.predictor, luma).astype(np.float32))
    assert np.abs(cells[0] - cells[1]).max() < 0.2


def test_flat_surroundings_keep_a_deviation():
    unknown = torch.zeros(1, 1, 32, 32, dtype=bool)
    unknown[..., 10:20, 10:20] = True
    image = torch.full((1, 1, 32, 32), 0.5)
    center, deviation = BlockGrid(image, unknown, range(4, 17)).statistics(image)
    assert center.item() == pytest.approx(0.5) and deviation.item() == pytest.approx(5 / 255, rel=0.05)
