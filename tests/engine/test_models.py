"""Weights from a model's file in a network that is larger."""

import pytest
import torch

from architectures import ResidualUNet
from depixelation.engine.models import load_weights, validated_in
from utils import UserError


def test_a_larger_network_starts_as_the_smaller_one():
    torch.manual_seed(0)
    small, large = ResidualUNet((8, 12), (1, 1)), ResidualUNet((12, 20), (2, 1))
    for parameter in small.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    checkpoint = {"weights": small.state_dict(), "config": {"network": "ResidualUNet"}}
    load_weights(large, checkpoint, "small.pt")
    inputs = torch.rand(2, 2, 32, 32)
    inputs[:, 1] = 1
    inputs[:, 1, 8:20, 4:20] = 0
    inputs[:, :1, 8:20, 4:20] = inputs[:, :1, 8:9, 4:5]
    with torch.no_grad():
        assert torch.allclose(small.eval()(inputs), large.eval()(inputs), atol=1e-5)
    large(inputs).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in large.named_parameters() if "conv1" not in name)
    with pytest.raises(UserError, match="do not fit ResidualUNet"):
        load_weights(ResidualUNet((8, 8), (1, 1)), checkpoint, "small.pt")


def test_the_precision_of_another_kind_of_device_is_not_kept():
    saved = {"device": "cuda", "precision": "bfloat16"}
    assert validated_in(saved, torch.device("cuda")) == "bfloat16" and validated_in(saved, torch.device("cpu")) is None
