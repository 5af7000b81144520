"""The eight symmetries of the square, for images and for the filters of equivariant networks.

A symmetry is a number from 0 (unchanged) to 7. Bits: mirrored along x, mirrored along y, then transposed.

Filters may also be tied by negation, which swaps light and dark; then 16 entries are equal instead of 8. Each channel a
has a partner b, the value of a for the negated image. Negating the image swaps a and b. It leaves (a + b) / 2, the even
parity, unchanged and flips the sign of (a - b) / 2, the odd parity. A tied filter treats a and b alike:
a' = p a + q b and b' = q a + p b. Hence even' = (p + q) even and odd' = (p - q) odd: two convolutions instead of four,
half of the FLOPs. Only ReLU needs a = even + odd and b = even - odd themselves.

Where by_parity is true, a network computes with Parities, two tensors. A single tensor would have to be split and
joined again at every layer, and the last layers would compute even maps that nobody needs.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

SYMMETRIES = (0, 4, 3, 7, 1, 2, 5, 6)  # best first: the first three average to nearly the mean of all


def turn(maps, symmetry):
    """Apply a symmetry to maps, (..., H, W) -> (..., H, W), or (..., W, H) where it transposes."""
    maps = maps.flip([axis for axis, bit in ((-1, 1), (-2, 2)) if symmetry & bit])
    return maps.mT if symmetry & 4 else maps


def turn_back(maps, symmetry):
    """Undo `turn`."""
    maps = maps.mT if symmetry & 4 else maps
    return maps.flip([axis for axis, bit in ((-1, 1), (-2, 2)) if symmetry & bit])


def transform(network, maps, symmetry):
    """Turn the maps, (N, C, H, W), apply the network, and turn its output, float32, back."""
    maps = turn(maps, symmetry).contiguous(memory_format=torch.channels_last)
    return turn_back(network(maps).float(), symmetry)


def products():
    """The table of compositions, eight lists: entry g of list r is the symmetry "first g, then r"."""
    corners = torch.arange(4, device="cpu").view(2, 2)  # even where a network is built on the meta device
    known = {tuple(turn(corners, g).flatten().tolist()): g for g in range(8)}
    return [[known[tuple(turn(turn(corners, g), r).flatten().tolist())] for g in range(8)] for r in range(8)]


@functools.cache
def tied_entries(outputs, inputs, subpixels, side):
    """The orbit of each entry of a filter, int64, from 0: an equivariant filter has equal entries within an orbit.

    outputs, inputs: 8 for a field, whose channels a symmetry permutes; 1 for a channel that only turns; 16 or 2 where
    a second half holds the first half's values for the negated image. The shape is (outputs, inputs, subpixels,
    subpixels, side, side); a pixel shuffle puts the subpixels beside each other. Each orbit has 8 entries, or 16.
    """
    shape = outputs, inputs, subpixels, subpixels, side, side
    entries, turned = torch.arange(math.prod(shape), device="cpu").view(shape), []
    for symmetry, order in enumerate(products()):
        places = {1: [0], 2: [0, 1], 8: order, 16: order + [8 + g for g in order]}
        kernels = turn_back(entries[places[outputs]][:, places[inputs]], symmetry)
        turned.append(turn_back(kernels.movedim((2, 3), (4, 5)), symmetry).movedim((4, 5), (2, 3)))
    if outputs in (2, 16):
        turned += [kernels.roll((outputs // 2, inputs // 2), (0, 1)) for kernels in turned]
    return torch.stack(turned).amin(dim=0).unique(return_inverse=True)[1]


class EquivariantConv2d(nn.Module):
    """A convolution that is equivariant to all eight symmetries: Cohen and Welling 2016, p4m.

    Channels come in fields of eight: channel g of a field is the first channel's response to the image in symmetry g,
    turned back. So a filter between fields has an eighth of the free weights, but takes as many FLOPs. In fields of
    sixteen, channel 8 + g is channel g for the negated image, and only a sixteenth of the weights is free.
    """

    def __init__(self, conv, outputs=8, inputs=8, subpixels=1):
        """conv: the nn.Conv2d to replace; its weights set the initial scale. outputs, inputs: 8 for fields, 1 for
        channels of images; 16 or 2, see tied_entries. subpixels: the factor of the pixel shuffle that follows, or 1."""
        super().__init__()
        self.outputs, self.inputs, self.subpixels = outputs, inputs, subpixels
        self.stride, self.padding, side = conv.stride, conv.padding, conv.kernel_size[0]
        a, b = conv.in_channels, conv.out_channels // subpixels**2
        if a % inputs or b % outputs:
            raise ValueError(f"an equivariant network needs channels that are multiples of {max(inputs, outputs)}")
        self.paired = outputs in (2, 16)
        tied = tied_entries(outputs, inputs, subpixels, side)
        self.shape, self.order = tied.shape, int(tied.flatten().bincount()[0])
        self.register_buffer("tied", tied.flatten().to(conv.weight.device), persistent=False)
        weight = conv.weight.detach()
        self.weight = nn.Parameter(torch.empty(b // outputs, a // inputs, len(self.tied) // self.order))
        self.bias = nn.Parameter(torch.empty(b // outputs))
        with torch.no_grad():
            self.weight.copy_(self.untied(weight.permute(0, 2, 3, 1)) * self.order**0.5)  # a mean has less deviation
            self.bias.copy_(conv.bias[:: outputs * subpixels**2])

    def extra_repr(self):
        outputs, inputs = self.weight.shape[0] * self.outputs, self.weight.shape[1] * self.inputs
        return f"{inputs}, {outputs}, side={self.shape[-1]}, stride={self.stride}"

    def matrix(self, weight):
        """The filters of free weights, shaped like self.weight, as a matrix: outputs x (height * width * inputs)."""
        o, i = weight.shape[:2]
        return _as_matrix(weight.flatten(0, 1).index_select(1, self.tied).view(o, i, *self.shape))

    def untied(self, matrix):
        """The free weights whose filters are nearest to this matrix: the inverse of matrix()."""
        o, i = self.weight.shape[:2]
        full = matrix.reshape(o, self.outputs, *self.shape[2:], i, self.inputs).permute(0, 6, 1, 7, 2, 3, 4, 5)
        return torch.zeros_like(self.weight).index_add_(2, self.tied, full.reshape(o, i, -1)) / self.order

    def filters(self):
        """The filters as in nn.Conv2d, (out, in, h, w), in channels_last format."""
        return _from_matrix(self.matrix(self.weight), self.shape[-2:])

    def parity_filters(self):
        """The filters of the even maps and those of the odd maps, each (out / 2, in / 2, h, w)."""
        o, i = self.weight.shape[:2]
        half = self.weight.flatten(0, 1).index_select(1, self.tied[: len(self.tied) // 2])  # the filters of channels a
        half = half.view(o, i, self.outputs // 2, 2, self.inputs // 2, *self.shape[2:])
        p, q = half.unbind(3)  # the weights for channels a, and for channels b
        return [_from_matrix(_as_matrix(filters), self.shape[-2:]) for filters in (p + q, p - q)]

    def forward(self, maps):
        if isinstance(maps, Parities):
            bias = self.bias.repeat_interleave(self.outputs // 2 * self.subpixels**2)  # of a and b alike: odd is 0,
            parts = zip(maps, self.parity_filters(), (bias, 0 * bias))  # yet in the graph: all need a gradient
            return Parities(*(F.conv2d(part, f, b, self.stride, self.padding) for part, f, b in parts))
        bias = self.bias.repeat_interleave(self.outputs * self.subpixels**2)
        return F.conv2d(maps, self.filters(), bias, self.stride, self.padding)


def _as_matrix(filters):
    """(fields, fields, outputs, inputs, subpixels, subpixels, h, w) -> outputs x (h * w * inputs)."""
    return filters.permute(0, 2, 4, 5, 6, 7, 1, 3).flatten(4).flatten(0, 3)


def _from_matrix(matrix, sides):
    """The same as filters of a convolution, (out, in, h, w), in channels_last format."""
    return matrix.unflatten(1, (*sides, -1)).permute(0, 3, 1, 2)


class Parities(NamedTuple):
    """The even and the odd maps, a tensor each, where a network would have one tensor of pairs of maps."""

    even: torch.Tensor
    odd: torch.Tensor

    def __add__(self, other):
        return Parities(self.even + other.even, self.odd + other.odd)


def each(function, maps, *arguments):
    """Apply a function to maps, or to both parities. It must be linear and treat all channels alike."""
    if isinstance(maps, Parities):
        return Parities(*(function(part, *arguments) for part in maps))
    return function(maps, *arguments)


class PairReLU(nn.Module):
    """ReLU of paired channels. On parities it acts on a and b, and is the only layer that mixes the two."""

    def forward(self, maps):
        return Parities(*ParityReLU.apply(*maps)) if isinstance(maps, Parities) else F.relu(maps)


class ParityReLU(torch.autograd.Function):
    """((a + b) / 2, (a - b) / 2) of a = ReLU(even + odd), b = ReLU(even - odd).

    The gradient has the same form as the function; autograd's own takes nearly twice as many passes over memory.
    """

    @staticmethod
    def forward(ctx, even, odd):
        a, b = (even + odd).relu_(), (even - odd).relu_()
        ctx.save_for_backward(a, b)
        mean = torch.lerp(a, b, 0.5)
        return mean, a - mean

    @staticmethod
    def backward(ctx, even, odd):
        a, b = ctx.saved_tensors
        a, b = (torch.ops.aten.threshold_backward(g, out, 0) for g, out in ((even + odd, a), (even - odd, b)))
        mean = torch.lerp(a, b, 0.5)
        return mean, a - mean


def by_parity(maps):
    """Whether a network tied by negation computes with parities: on a CPU in float32, where arithmetic dominates.

    bfloat16 is used only on CPUs that are fast in it; there memory traffic and calls weigh more.
    """
    return maps.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def odd(network, maps, signs):
    """The odd parity of the output of a network that takes and returns pairs of maps.

    maps: (N, C, H, W). signs: for each map -1 if negating the image flips its sign, else 1.
    """
    if by_parity(maps):  # a map whose sign flips is purely odd, any other purely even
        even = torch.tensor(signs).view(-1, 1, 1) > 0
        return network(Parities(maps * even, maps * ~even)).odd
    pairs = [m for one, sign in zip(maps.split(1, dim=1), signs) for m in (one, one if sign > 0 else -one)]
    pairs = torch.cat(pairs, dim=1).contiguous(memory_format=torch.channels_last)  # (N, 2C, H, W)
    one, other = network(pairs).float().split(1, dim=1)
    return (one - other) / 2


def tie_filters(network, odd=False, shuffled="expand"):
    """Make a network equivariant, in place: replaces its convolutions and, if odd, its ReLUs, which must be modules.

    The input of its layer `first` and the output of its layer `last` turn as images do; only the maps between are
    fields. odd: tie the filters by negation, too; maps then come in pairs, for the image and for the negated image.
    shuffled: the layer, or the list of layers, whose output a pixel shuffle spreads over twice the side.
    """
    image_fields, feature_fields = (2, 16) if odd else (1, 8)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            role = {
                "inputs": image_fields if name == "first" else feature_fields,
                "outputs": image_fields if name == "last" else feature_fields,
                "subpixels": 2 if name.split(".")[0] == shuffled else 1,
            }
            network.set_submodule(name, EquivariantConv2d(module, **role))
        elif odd and isinstance(module, nn.ReLU):
            network.set_submodule(name, PairReLU())
