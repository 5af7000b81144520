"""Muon, of convolution filters that are free or tied, against PyTorch's."""

import copy

import pytest
import torch
from torch import nn

from architectures import EquivariantUNet, OddUNet, ResidualUNet
from depixelation.engine.optimizers import build_optimizers
from depixelation.symmetry import EquivariantConv2d


def test_muon_trains_the_filters_and_adamw_the_rest():
    network = ResidualUNet((8, 32), (1, 1)).to(memory_format=torch.channels_last)
    parameters = list(network.parameters())
    adamw, muon = build_optimizers("muon", network, 0.0, torch.float32)
    filters = [p for p in parameters if p.ndim == 4 and min(p.shape[:2]) >= 32]
    assert filters and [id(weight) for weight, _ in muon.filters] == list(map(id, filters))
    assert len(adamw.param_groups[0]["params"]) == len(parameters) - len(filters)
    before = [p.detach().clone() for p in filters]
    for p in filters:
        p.grad = torch.randn_like(p)
    muon.param_groups[0]["lr"] = 1e-3 * muon.param_groups[0]["scale"]
    muon.step()
    for p, old in zip(filters, before):  # AdamW's updates have an RMS of 0.2 times the rate, by Liu et al.
        assert (p - old).square().mean().sqrt().item() == pytest.approx(3 * 2e-4, rel=0.4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_muon_is_that_of_pytorch(precision):
    """In bfloat16 equal to the bit, since PyTorch's iterates in it, too; in float32 up to the rounding of bfloat16."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 48, 3), nn.Conv2d(48, 32, 1)).to(memory_format=torch.channels_last)
    muon = build_optimizers("muon", network, 0.01, precision)[1]
    theirs = [nn.Parameter(matrix.detach().clone()) for matrix in muon.param_groups[0]["params"]]
    before = copy.deepcopy(theirs)
    reference = torch.optim.Muon(theirs, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    muon.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = 1e-3
    for _ in range(3):
        for (weight, _), matrix in zip(muon.filters, theirs, strict=True):
            weight.grad = torch.randn_like(weight)
            matrix.grad = weight.grad.permute(0, 2, 3, 1).flatten(1)
        muon.step()
        reference.step()
    for (weight, _), matrix, old in zip(muon.filters, theirs, before):
        off = (weight.permute(0, 2, 3, 1).flatten(1) - matrix).norm() / (matrix - old).norm()
        assert off == 0 if precision == torch.bfloat16 else 0 < off < 0.05


@pytest.mark.parametrize("kind", [EquivariantUNet, OddUNet])
def test_tied_filters_are_trained_as_free_ones_with_tied_gradients(kind):
    """Two steps of Muon on tied filters are those on free ones that are equal and have the same gradients."""
    torch.manual_seed(0)
    tied = kind((16, 32, 48), (2, 1, 1)).to(memory_format=torch.channels_last)
    for parameter in tied.parameters():  # the residual branches start at zero
        nn.init.normal_(parameter, std=0.1)
    free = ResidualUNet((16, 32, 48), (2, 1, 1))
    free.first, free.last = nn.Conv2d(kind.MAPS[0], 16, 3), nn.Conv2d(16, kind.MAPS[1], 3)
    free.to(memory_format=torch.channels_last)
    layers = {name: layer for name, layer in tied.named_modules() if isinstance(layer, EquivariantConv2d)}
    for name, layer in layers.items():
        free.get_submodule(name).weight.data.copy_(layer.filters().detach())
    optimizers = [build_optimizers("muon", network, 0.01, torch.float32)[1] for network in (tied, free)]
    assert len(optimizers[0].filters) == len(optimizers[1].filters) > 5
    before = copy.deepcopy(tied)
    for _ in range(2):
        for name, layer in layers.items():
            layer.weight.grad = torch.randn_like(layer.weight)
            gradient = layer.matrix(layer.weight.grad)  # of a loss of the filters, as far as it is tied, times 8 or 16
            twin = free.get_submodule(name)
            twin.weight.grad = gradient.view_as(twin.weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-3
            optimizer.step()
    trained = [layer for _, layer in optimizers[0].filters]
    for name, layer in layers.items():
        if layer in trained:
            change = (layer.filters() - before.get_submodule(name).filters()).std()
            assert change > 1e-4
            assert (layer.filters() - free.get_submodule(name).weight).std() < 1e-3 * change
