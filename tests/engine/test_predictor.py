"""Predictions that are means: of several models, and over views of the input."""

import numpy as np
import torch
from conftest import TINY_UNET as TINY  # noqa: F401 (the options of run)

from architectures import IdentityModel, Interpolation
from depixelation.engine import predictor as predictor_module
from depixelation.engine.predictor import Ensemble, Predictor, RealismBlend
from depixelation.tasks.depixelation import Depixelation
from submission_serialization import deserialize


def test_mean_of_predictions_scores_no_worse_than_the_mean_of_scores():
    class Off(torch.nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, inputs):
            return inputs[:, :1] + self.by * (1 - inputs[:, 1:])

    image = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    known = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    known[..., 2:6, 2:6] = False
    samples = [(image[0].numpy(), known[0].numpy(), image[0, :, 2:6, 2:6].numpy(), "")] * 10
    predictors = [Predictor(Off(by / 255), torch.device("cpu")) for by in (4, -8)]
    predictors += [Ensemble(predictors), Predictor(IdentityModel(), torch.device("cpu"))]
    task = Depixelation(Depixelation.Config())
    figures, seconds, sample, geometry, _ = task.measure(predictors, samples)
    assert figures["score"].tolist() == [[4.0] * 10, [8.0] * 10, [2.0] * 10, [0.0] * 10]
    assert geometry.tolist() == [[16, 16]] * 10 and min(seconds) > 0
    assert torch.equal(sample[2][0], torch.where(known, image, 104)[0]) and len(sample[0]) == 8


def test_views_and_several_models_are_averaged(run, test_set):
    assert run("--epochs", "1", "--network", "ResidualUNet") == 0
    saved = torch.load("models/default.pt", weights_only=True)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        weights = {key: 0.05 * torch.randn(weight.shape) for key, weight in saved["weights"].items()}
        torch.save({**saved, "weights": weights}, f"{name}.pt")

    def submit(*words):
        assert run("--predict", *words, "--test_set", test_set[0], "--submission", "s.bin") == 0
        return np.concatenate(deserialize("s.bin")).astype(int)

    a, b, both = (submit(*names, "--views", "1") for names in (["a.pt"], ["b.pt"], ["a.pt", "b.pt"]))
    assert np.abs(2 * both - a - b).mean() < 0.5 * np.abs(a - b).mean()
    assert not np.array_equal(a, submit("a.pt")) and np.array_equal(submit("a.pt"), submit("a.pt", "--views", "8"))


def count_calls(monkeypatch, remembered, order):
    """(how often the accurate network ran, the outputs) for a blend and two samples. order: of what is restored."""
    monkeypatch.setattr(predictor_module, "REMEMBERED", remembered)
    calls = []

    def network(inputs):
        calls.append(1)
        return inputs[:, :1] * 0.9

    def refine(inputs, restored, seed):
        return restored + torch.randn(restored.shape, generator=torch.Generator().manual_seed(seed))

    blend = RealismBlend(Predictor(network, torch.device("cpu")), refine, 0.3, draws=True)
    areas = torch.rand(4, 1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    predictors = [blend.accurate, blend, *blend.samples(2)]
    outputs = [predictors[i](areas[k].clone()) for i, k in order]
    return len(calls), outputs


def test_possible_originals_share_the_accurate_restoration(monkeypatch):
    order = [(i, k) for i in range(4) for k in range(4)]  # all areas by each predictor
    once, outputs = count_calls(monkeypatch, 2**20, order)
    each, computed = count_calls(monkeypatch, 0, order)
    assert once == 4 and each == 16 and all(map(torch.equal, outputs, computed))
    kept, _ = count_calls(monkeypatch, 2 * 3 * 64, order[:1] * 3 + order[:3] + order[:1])  # two areas fit
    assert kept == 4


def test_what_is_remembered_is_told_apart_by_values_and_shape():
    accurate = RealismBlend(Predictor(lambda inputs: inputs + 1, torch.device("cpu")), None).accurate
    inputs = torch.zeros(1, 2, 4, 4)
    first = accurate(inputs)
    inputs += 1  # the caller's own
    assert accurate(inputs).mean() == 2 and first.mean() == 1 and accurate(torch.zeros(1, 2, 4, 4)).mean() == 1
    assert accurate(torch.zeros(1, 2, 2, 8)).shape == (1, 2, 2, 8)


def test_a_blend_sees_as_far_as_either_network():
    for reach, expected in ((9, 9), (1, Interpolation.reach)):
        blend = RealismBlend(Predictor(Interpolation(), torch.device("cpu")), None, reach=reach)
        assert blend.reach == blend.at(0.5).reach == expected
