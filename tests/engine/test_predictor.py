"""Predictions that are means: of several models, and over views of the input."""

import numpy as np
import torch
from conftest import TINY_UNET as TINY  # noqa: F401 (the options of run)

from architectures import IdentityModel
from depixelation.engine.predictor import Ensemble, Predictor
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
