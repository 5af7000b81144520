"""One network in training."""

import pytest
import torch

from depixelation.engine.learner import ema_update


def test_the_average_moves_as_if_every_step_updated_it():
    """Its updates come every fourth step; the first steps, which each have one, move it faster."""
    for updates, share in ((10**6, 1 - 0.998**4), (0, 1 - 0.1**4)):
        averages = [torch.zeros(3)]
        ema_update(0.998)(averages, [torch.ones(3)], updates)
        assert averages[0].tolist() == pytest.approx([share] * 3)
    counts = [torch.tensor([3])]  # as batch normalisation has
    ema_update(0.998)(counts, [torch.tensor([8])], 10)
    assert counts[0].item() == 8
