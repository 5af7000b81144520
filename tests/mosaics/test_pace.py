"""What is slow says so early: from the first part the time of the rest, with a clock that the test moves."""

import torch

from depixelation.mosaics.area import Area
from depixelation.mosaics.pace import Pace, pixels_to_restore


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def work(kinds, steps):
    """What is said, as (seconds on the clock, line). kinds: pixels by kind; steps: (kind, pixels, seconds) of calls."""
    clock, said = Clock(), []
    pace = Pace(kinds, lambda line: said.append((clock.now, line)), clock)

    def predictor(seconds):
        def predict(inputs):
            clock.now += seconds
            return inputs[:, :1]

        return predict

    for kind, pixels, seconds in steps:
        inputs = torch.zeros(1, 2, 1, pixels)
        assert pace.watch(kind, predictor(seconds))(inputs).shape == (1, 1, 1, pixels)
    return said


def test_the_rest_is_told_once_from_the_first_part():
    assert work({"a": 1000}, [("a", 100, 2)] * 10) == [(2, "about 18 s")]
    assert work({"a": 1000}, [("a", 100, 1)] * 10) == []  # 9 s


def test_warming_up_tells_nothing():
    assert work({"a": 1000}, [("a", 1, 0.3), ("a", 499, 3), ("a", 500, 3)]) == []


def test_what_turns_out_slower_is_told_again():
    steps = [("a", 100, 6), ("b", 100, 60), ("b", 100, 60), ("b", 100, 60)]
    assert work({"a": 100, "b": 300}, steps) == [(6, "about 18 s"), (66, "about 120 s")]


def test_work_is_counted_as_the_network_sees_it():
    area = Area(10, 20, 100, 60, 10, 10)
    assert pixels_to_restore([area], 3) == 3 * 148 * 108
    large = Area(0, 0, 240, 120, 24, 24)  # restored with blocks of 12
    assert pixels_to_restore([area, large], 1) == 148 * 108 + 168 * 108
