"""The symmetries of the square, and the filters that commute with them."""

import copy

import pytest
import torch
from torch import nn

from architectures import BasicCNN, EquivariantUNet, ResidualUNet, UNet
from symmetry import SYMMETRIES, EquivariantConv2d, products, tied_entries, transform, turn, turn_back
from tasks.depixelation import first_symmetries
from tasks.training import build_optimizers


def equivariant(seed=0, **options):
    torch.manual_seed(seed)
    network = EquivariantUNet((16, 32, 48), (2, 1, 1), **options).to(memory_format=torch.channels_last)
    for parameter in network.parameters():  # the residual branches start at zero
        nn.init.normal_(parameter, std=0.1)
    return network


def test_symmetries_form_a_group():
    maps, table = torch.arange(24).view(2, 3, 4), products()
    assert len({tuple(turn(maps, s).flatten().tolist()) for s in SYMMETRIES}) == 8
    for first in range(8):
        assert torch.equal(turn_back(turn(maps, first), first), maps)
        assert sorted(table[first]) == sorted(SYMMETRIES)
        for then in range(8):
            assert torch.equal(turn(turn(maps, first), then), turn(maps, table[then][first]))


@pytest.mark.parametrize("shape, free", [((8, 8, 1, 3), 72), ((8, 1, 1, 3), 9), ((1, 8, 2, 3), 36), ((8, 8, 2, 1), 32)])
def test_an_eighth_of_a_filter_is_free(shape, free):
    tied = tied_entries(*shape)
    assert tied.numel() == 8 * free and tied.unique().tolist() == list(range(free))
    assert (tied.flatten().bincount() == 8).all()


def test_output_turns_as_the_input_does():
    network, maps = equivariant(), torch.randn(2, 3, 16, 24)
    seen = [transform(lambda maps: UNet.forward(network, maps), maps, symmetry).detach() for symmetry in range(8)]
    assert seen[0].std() > 0.1
    for other in seen[1:]:
        assert (other - seen[0]).abs().max() < 1e-4 * seen[0].abs().max()
    assert (transform(lambda maps: UNet.forward(network, maps.roll(1, 3)), maps, 1) - seen[0]).abs().max() > 0.1
    with pytest.raises(ValueError, match="multiples of 8"):
        EquivariantUNet((12, 16), (1, 1))


def test_weights_and_filters_are_one_another():
    network, free = EquivariantUNet(), ResidualUNet()
    assert sum(p.numel() for p in network.parameters()) < 0.13 * sum(p.numel() for p in free.parameters())
    for name, layer in network.named_modules():
        if isinstance(layer, EquivariantConv2d):
            like = free.get_submodule(name).weight
            filters = layer.filters()
            assert filters.shape == like.shape and filters.std().item() == pytest.approx(like.std().item(), rel=0.25)
            assert torch.allclose(layer.untied(layer.matrix(layer.weight)), layer.weight, atol=1e-6)


def test_muon_trains_the_filters_and_adamw_the_rest():
    network = ResidualUNet((8, 32), (1, 1)).to(memory_format=torch.channels_last)
    parameters = list(network.parameters())
    adamw, muon = build_optimizers("muon", network, 0.0)
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


def test_tied_filters_are_trained_as_free_ones_with_tied_gradients():
    """Two steps of Muon on tied filters are those on free ones that are equal and have the same gradients."""
    tied = equivariant()
    free = ResidualUNet((16, 32, 48), (2, 1, 1)).to(memory_format=torch.channels_last)
    layers = {name: layer for name, layer in tied.named_modules() if isinstance(layer, EquivariantConv2d)}
    for name, layer in layers.items():
        free.get_submodule(name).weight.data.copy_(layer.filters().detach())
    optimizers = [build_optimizers("muon", network, 0.01)[1] for network in (tied, free)]
    assert len(optimizers[0].filters) == len(optimizers[1].filters) > 5
    before = copy.deepcopy(tied)
    for _ in range(2):
        for name, layer in layers.items():
            layer.weight.grad = torch.randn_like(layer.weight)
            gradient = layer.matrix(layer.weight.grad) / 8  # of a loss of the filters, as far as it is tied
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
            assert (layer.filters() - free.get_submodule(name).weight).std() < 0.05 * change  # iterates in bfloat16


def test_views_are_taken_in_the_best_order():
    assert first_symmetries(ResidualUNet, 3) == {"symmetries": (0, 4, 3)} and SYMMETRIES[3] == 7
    assert len(first_symmetries(ResidualUNet, 8)["symmetries"]) == 8
    assert first_symmetries(EquivariantUNet, 8) == {"symmetries": (0,)}  # one is worth eight
    assert first_symmetries(BasicCNN, 8) == {}
