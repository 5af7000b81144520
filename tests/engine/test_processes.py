"""What training runs on."""

import timeit

import torch

from depixelation.engine.processes import choose_precision


def test_precision_is_measured(monkeypatch):
    assert choose_precision("float32", torch.device("cpu")) == torch.float32
    for other, chosen in ((0.5, torch.bfloat16), (1.5, torch.float32)):
        seconds = iter([[1.0, 3.0], [other, 3.0]])
        monkeypatch.setattr(timeit, "repeat", lambda *arguments, **options: next(seconds))
        assert choose_precision("auto", torch.device("cpu")) == chosen
