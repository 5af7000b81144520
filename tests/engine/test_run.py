"""What a training has done so far, and what follows from it."""

import math

import pytest

from depixelation.engine.run import Run, learning_rate
from utils import Config, UserError


def test_learning_rate_is_a_function_of_progress():
    config = Config(learning_rate=1.0, warmup=0.1, decay=0.5, epochs=10, max_minutes=2.0)
    assert [learning_rate(config, p) for p in (0, 0.05, 0.1, 0.5, 0.75, 1)] == pytest.approx([0, 0.5, 1, 1, 0.5, 0])
    for step, seconds, progress in ((30, 12, 0.3), (30, 60, 0.5), (500, 0, 1)):  # by epochs, by minutes, at the end
        run = Run(step=step, seconds=seconds)
        run.begin(config, 10)
        assert run.progress(step) == pytest.approx(progress) and run.epoch == step / 10


def test_loss_that_is_not_finite():
    run = Run(step=20)
    run.begin(Config(learning_rate=0.1), 8)
    run.check(1.5)
    with pytest.raises(UserError, match="learning_rate: the loss became nan in epoch 3, at or before step 20"):
        run.check(math.nan)
