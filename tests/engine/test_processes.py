"""What training runs on."""

import functools
import timeit

import torch

from depixelation.engine import processes


def test_precision_is_measured_once(monkeypatch):
    assert processes.choose_precision("float32", torch.device("cpu")) == torch.float32
    measure = processes.convolution_seconds.__wrapped__
    for other, chosen in ((0.5, torch.bfloat16), (1.5, torch.float32)):
        seconds = iter([[1.0, 3.0], [other, 3.0]])
        monkeypatch.setattr(timeit, "repeat", lambda *arguments, **options: next(seconds))
        monkeypatch.setattr(processes, "convolution_seconds", functools.cache(measure))
        for _ in range(2):
            assert processes.choose_precision("auto", torch.device("cpu")) == chosen


def test_each_process_has_a_share_of_each_batch():
    """Also of one with fewer images than processes: they compute their gradients together."""
    shares = []
    for rank in (0, 1):
        each = processes.Processes()
        each.rank, each.count = rank, 2
        shares.append(list(each.shares([[1, 2, 3], [4]])))
    assert shares == [[[1, 3], [4]], [[2], [4]]]
