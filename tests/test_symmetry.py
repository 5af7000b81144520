"""The symmetries of the square, and the filters that commute with them."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from architectures import BasicCNN, EquivariantUNet, OddUNet, ResidualUNet
from depixelation.engine.models import load_weights
from depixelation.symmetry import (
    SYMMETRIES,
    EquivariantConv2d,
    PairReLU,
    Parities,
    by_parity,
    products,
    tied_entries,
    transform,
    turn,
    turn_back,
)
from depixelation.tasks.depixelation import Depixelation
from utils import UserError


def equivariant(kind=EquivariantUNet):
    torch.manual_seed(0)
    network = kind((16, 32, 48), (2, 1, 1)).to(memory_format=torch.channels_last)
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


@pytest.mark.parametrize(
    "shape, free",
    [
        *(((8, 8, 1, 3), 72), ((8, 1, 1, 3), 9), ((1, 8, 2, 3), 36), ((8, 8, 2, 1), 32)),
        *(((16, 16, 1, 3), 144), ((16, 2, 1, 3), 18), ((2, 16, 2, 3), 72), ((16, 16, 2, 1), 64)),
    ],
)
def test_an_eighth_or_a_sixteenth_of_a_filter_is_free(shape, free):
    tied, order = tied_entries(*shape), 8 if 8 in shape else 16
    assert tied.numel() == order * free and tied.unique().tolist() == list(range(free))
    assert (tied.flatten().bincount() == order).all()


@pytest.mark.parametrize("kind, multiple", [(EquivariantUNet, 8), (OddUNet, 16)])
def test_output_turns_as_the_input_does(kind, multiple):
    network, maps = equivariant(kind), torch.randn(2, 3, 16, 24)
    seen = [transform(network.residual, maps, symmetry).detach() for symmetry in range(8)]
    assert seen[0].std() > 0.1
    for other in seen[1:]:
        assert (other - seen[0]).abs().max() < 1e-4 * seen[0].abs().max()
    assert (transform(lambda maps: network.residual(maps.roll(1, 3)), maps, 1) - seen[0]).abs().max() > 0.1
    with pytest.raises(ValueError, match=f"multiples of {multiple}"):
        kind((multiple + 4, 16), (1, 1))


def test_parities_give_the_same_output_and_gradient_for_half_of_the_flops(monkeypatch):
    network, maps = equivariant(OddUNet), torch.randn(2, 3, 16, 24)
    results, flops = [], []
    for parities in (True, False):
        monkeypatch.setattr("depixelation.symmetry.by_parity", lambda maps, parities=parities: parities)
        with FlopCounterMode(display=False) as counter:
            output = network.residual(maps)
        gradients = torch.autograd.grad(output.square().mean(), network.parameters())
        results.append([output.detach(), torch.cat([gradient.flatten() for gradient in gradients])])
        flops.append(counter.get_total_flops())
    assert 2 * flops[0] == flops[1]
    for one, other in zip(*results):
        assert one.norm() > 0.1 and (one - other).norm() < 1e-4 * other.norm()
    monkeypatch.undo()
    assert by_parity(maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_parity(maps)


def test_relu_of_parities_is_that_of_pairs():
    even, odd = (torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a, b = (maps.relu() for maps in (even + odd, even - odd))
    parities = PairReLU()(Parities(even, odd))
    assert torch.allclose(parities.even, (a + b) / 2) and torch.allclose(parities.odd, (a - b) / 2)
    assert torch.autograd.gradcheck(lambda *parts: tuple(PairReLU()(Parities(*parts))), (even, odd))
    assert torch.autograd.gradcheck(lambda *parts: PairReLU()(Parities(*parts)).odd, (even, odd))  # even: not needed


def test_a_negative_is_restored_as_a_negative():
    """Light and dark swapped: the U-Net's output is negated if the network is odd, and only then."""
    maps = torch.randn(2, 3, 16, 24)
    swapped = torch.cat([-maps[:, :2], maps[:, 2:]], dim=1)
    for kind in (OddUNet, EquivariantUNet):
        network = equivariant(kind)
        output, negated = network.residual(maps).detach(), network.residual(swapped).detach()
        off = (negated + output).abs().max() / output.abs().max()
        assert output.std() > 0.1 and (off < 1e-4 if kind is OddUNet else off > 0.1)
        with torch.no_grad():
            assert (network.residual(-maps) + output).abs().max() > 0.1  # the mask is no grey value
        image, known = 0.3 + 0.4 * torch.rand(1, 1, 16, 24), torch.ones(1, 1, 16, 24)
        image[:, :, 4:12, 4:12], known[:, :, 4:12, 4:12] = 0.5, 0
        inputs = [torch.cat([grey, known], dim=1) for grey in (image, 1 - image)]
        with torch.no_grad():
            one, other = map(network, inputs)
        off, deviation = (one + other - 1).abs().max(), one[:, :, 4:12, 4:12].std()
        assert deviation > 0.1  # of random weights, which exaggerate that block means were rounded down, in both
        assert off < 0.1 * deviation if kind is OddUNet else off > 0.5 * deviation


def test_weights_of_another_kind_of_fields_are_refused():
    """As many fields, but of eight: without a check their weights would be the first half of each orbit's."""
    old = {"weights": EquivariantUNet((16, 32), (1, 1)).state_dict(), "config": {"network": "EquivariantUNet"}}
    with pytest.raises(UserError, match="x.pt: its weights .of EquivariantUNet. do not fit OddUNet"):
        load_weights(OddUNet((32, 64), (1, 1)), old, "x.pt")


def test_weights_and_filters_are_one_another():
    free = ResidualUNet()
    counts = [sum(p.numel() for p in network.parameters()) for network in (EquivariantUNet(), OddUNet(), free)]
    assert counts[0] < 0.13 * counts[2] and counts[1] < 0.07 * counts[2]
    for name, layer in [*EquivariantUNet().named_modules(), *OddUNet().named_modules()]:
        if isinstance(layer, EquivariantConv2d):
            like = free.get_submodule(name).weight
            filters = layer.filters()
            if 2 in (layer.inputs, layer.outputs):  # there are two of each map
                continue
            assert filters.shape == like.shape and filters.std().item() == pytest.approx(like.std().item(), rel=0.25)
            assert torch.allclose(layer.untied(layer.matrix(layer.weight)), layer.weight, atol=1e-6)


def test_views_are_taken_in_the_best_order():
    def views(network, count):
        return Depixelation(Depixelation.Config()).views(network, count, None)

    assert views(ResidualUNet, 3) == (0, 4, 3) and SYMMETRIES[3] == 7
    assert len(views(ResidualUNet, 8)) == 8
    for kind in (EquivariantUNet, OddUNet):
        assert views(kind, 8) == (0,)  # one is worth eight
    assert views(BasicCNN, 8) == ()
