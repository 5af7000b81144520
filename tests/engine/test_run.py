"""What a training has done so far, and what follows from it."""

import math
from types import SimpleNamespace

import pytest
import torch

from depixelation.engine.processes import rng_state, seed_everything
from depixelation.engine.run import Run, learning_rate, restore_run, save_run
from utils import Config, UserError


def test_learning_rate_is_a_function_of_progress():
    config = Config(learning_rate=1.0, warmup=0.1, decay=0.5, epochs=10, max_minutes=2.0)
    assert [learning_rate(config, p) for p in (0, 0.05, 0.1, 0.5, 0.75, 1)] == pytest.approx([0, 0.5, 1, 1, 0.5, 0])
    for step, seconds, progress in ((30, 12, 0.3), (30, 60, 0.5), (500, 0, 1)):  # by epochs, by minutes, at the end
        run = Run(step=step, seconds=seconds)
        run.begin(config, 10)
        assert run.progress(step) == pytest.approx(progress) and run.epoch == step / 10
    run = Run()
    run.begin(config, 10)
    assert run.learning_rate() == pytest.approx(0.05)  # of the first of 10 steps that rise, at its middle


def test_loss_that_is_not_finite():
    run = Run(step=20)
    run.begin(Config(learning_rate=0.1), 8)
    run.check(1.5)
    with pytest.raises(UserError, match="learning_rate: the loss became nan in epoch 3, at or before step 20"):
        run.check(math.nan)


def test_each_process_goes_on_with_its_own_random_numbers(tmp_path):
    """Their shares of a batch differ in size, and so in what they draw."""
    config, path = Config(output_dir=str(tmp_path)), tmp_path / "models" / "default.last.pt"
    states, drawn = [], []
    for seed in (1, 2):
        seed_everything(seed)
        states.append(rng_state())
        drawn.append(torch.rand(1))

    def learner(rank):
        processes = SimpleNamespace(rank=rank, collect=lambda value: states)
        return SimpleNamespace(processes=processes, precision=torch.float32)

    task = SimpleNamespace(learners=lambda learner: {}, fingerprint=str, is_trained_on=lambda images: True, sources={})
    run = SimpleNamespace(check_weights=None, state_dict=Run().state_dict)
    save_run(config, task, run, learner(1))
    assert not path.exists()
    save_run(config, task, run, learner(0))
    state = torch.load(path, weights_only=True)
    of_before = {key: value for key, value in state.items() if key != "other_rngs"}
    for saved, rank, expected in ((state, 0, 0), (state, 1, 1), (state, 2, 0), (of_before, 1, 0)):
        restore_run(config, task, learner(rank), saved)
        assert torch.rand(1) == drawn[expected]
