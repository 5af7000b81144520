"""The eight symmetries of the square: of images, and of the filters of a network that treats all of them alike.

A symmetry is a number from 0 (unchanged) to 7. Bits: mirrored along x, mirrored along y, then transposed.

Filters may be tied by negation, too, which swaps light and dark; then 16 entries are equal where otherwise 8 are. Each
channel a then has a partner b: what a would be for the negated image. Negating the image swaps a and b, so
(a + b) / 2 stays the same, it is even, and (a - b) / 2 changes its sign, it is odd: the two parities. A tied filter
treats a and b alike, a' = p a + q b and b' = q a + p b. Therefore even' = (p + q) even and odd' = (p - q) odd: two
convolutions instead of four, half of the FLOPs. Only ReLU needs a = even + odd and b = even - odd themselves.
Where by_parity says so, a network computes with Parities, two tensors: in one, they would have to be cut out and put
together again for every layer, and the last layers would be trained on even maps that nobody needs.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

SYMMETRIES = (0, 4, 3, 7, 1, 2, 5, 6)  # best first: the mean of predictions in the first three is nearly that of all


def turn(maps, symmetry):
    """Maps, (..., H, W), in a symmetry: (..., W, H) where it transposes."""
    maps = maps.flip([axis for axis, bit in ((-1, 1), (-2, 2)) if symmetry & bit])
    return maps.mT if symmetry & 4 else maps


def turn_back(maps, symmetry):
    """Undoes turn."""
    maps = maps.mT if symmetry & 4 else maps
    return maps.flip([axis for axis, bit in ((-1, 1), (-2, 2)) if symmetry & bit])


def transform(network, maps, symmetry):
    """The network's output, float32, for the maps in a symmetry, turned back."""
    maps = turn(maps, symmetry).contiguous(memory_format=torch.channels_last)
    return turn_back(network(maps).float(), symmetry)


def products():
    """Eight lists: entry g of list r is the symmetry that turns as g and then r do."""
    corners = torch.arange(4, device="cpu").view(2, 2)  # also where a network is built without memory, to be counted
    known = {tuple(turn(corners, g).flatten().tolist()): g for g in range(8)}
    return [[known[tuple(turn(turn(corners, g), r).flatten().tolist())] for g in range(8)] for r in range(8)]


@functools.cache
def tied_entries(outputs, inputs, subpixels, side):
    """Which entries of a filter are equal if it commutes with all symmetries: int64, each entry's orbit, from 0.

    outputs, inputs: 8 for a field, whose channels turn into each other, or 1 for a channel that only turns; 16 or 2
    where a second half holds what the first would be for the negated image. The shape is (outputs, inputs, subpixels,
    subpixels, side, side): subpixels are outputs that a pixel shuffle puts beside each other. Each orbit has 8 entries,
    or 16.
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
    """A convolution whose output turns as its input does, in all eight symmetries: Cohen and Welling 2016, p4m.

    Channels come in fields of eight: channel g of a field is what its first channel would be of the image in the
    symmetry g, turned back. So a filter between fields has an eighth of the free weights; it takes as many FLOPs.
    In fields of sixteen, channel 8 + g is channel g of the negated image: only a sixteenth of the weights is free.
    """

    def __init__(self, conv, outputs=8, inputs=8, subpixels=1):
        """conv: the nn.Conv2d that it replaces and begins as strong as. outputs, inputs: 8, or 1 where channels are no
        fields, as those of images; 16 or 2, see tied_entries. subpixels: by how much a pixel shuffle enlarges what it
        returns; else 1."""
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
            self.weight.copy_(self.untied(weight.permute(0, 2, 3, 1)) * self.order**0.5)  # a mean varies less
            self.bias.copy_(conv.bias[:: outputs * subpixels**2])

    def extra_repr(self):
        outputs, inputs = self.weight.shape[0] * self.outputs, self.weight.shape[1] * self.inputs
        return f"{inputs}, {outputs}, side={self.shape[-1]}, stride={self.stride}"

    def matrix(self, weight):
        """The filters as a matrix of outputs x (height * width * inputs), of weights as self.weight is."""
        o, i = weight.shape[:2]
        return _as_matrix(weight.flatten(0, 1).index_select(1, self.tied).view(o, i, *self.shape))

    def untied(self, matrix):
        """The weights whose filters are nearest to these: undoes matrix()."""
        o, i = self.weight.shape[:2]
        full = matrix.reshape(o, self.outputs, *self.shape[2:], i, self.inputs).permute(0, 6, 1, 7, 2, 3, 4, 5)
        return torch.zeros_like(self.weight).index_add_(2, self.tied, full.reshape(o, i, -1)) / self.order

    def filters(self):
        """As nn.Conv2d has them, (out, in, h, w), in channels_last format."""
        return _from_matrix(self.matrix(self.weight), self.shape[-2:])

    def parity_filters(self):
        """The filters of the even maps and those of the odd maps, each (out / 2, in / 2, h, w)."""
        o, i = self.weight.shape[:2]
        half = self.weight.flatten(0, 1).index_select(1, self.tied[: len(self.tied) // 2])  # the filters of channels a
        half = half.view(o, i, self.outputs // 2, 2, self.inputs // 2, *self.shape[2:])
        p, q = half.unbind(3)  # what they do to channels a, and to channels b
        return [_from_matrix(_as_matrix(filters), self.shape[-2:]) for filters in (p + q, p - q)]

    def forward(self, maps):
        if isinstance(maps, Parities):
            bias = self.bias.repeat_interleave(self.outputs // 2 * self.subpixels**2)  # of a and b: they differ by 0,
            parts = zip(maps, self.parity_filters(), (bias, 0 * bias))  # which is in the graph: all need a gradient
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
    """The function of maps, or of either parity; for functions that treat all channels alike and are linear."""
    if isinstance(maps, Parities):
        return Parities(*(function(part, *arguments) for part in maps))
    return function(maps, *arguments)


class PairReLU(nn.Module):
    """ReLU of paired channels. On parities it acts on a and b, and is the only layer that mixes the two."""

    def forward(self, maps):
        return Parities(*ParityReLU.apply(*maps)) if isinstance(maps, Parities) else F.relu(maps)


class ParityReLU(torch.autograd.Function):
    """((a + b) / 2, (a - b) / 2) of a = ReLU(even + odd), b = ReLU(even - odd).

    The gradient takes the same steps as the function, which in autograd's hands are nearly twice as many passes over
    memory.
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
    """Whether a network with filters tied by negation computes with parities: on a CPU in float32, where arithmetic
    takes most of the time. bfloat16 is used where the CPU computes fast in it; there memory and calls weigh more."""
    return maps.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def odd(network, maps, signs):
    """The odd parity of the output of a network that takes and returns pairs of maps.

    maps: (N, C, H, W). signs: for each of them -1 if negation changes its sign, else 1.
    """
    if by_parity(maps):  # a map that negation does not change is all even; one whose sign it changes is all odd
        even = torch.tensor(signs).view(-1, 1, 1) > 0
        return network(Parities(maps * even, maps * ~even)).odd
    pairs = [m for one, sign in zip(maps.split(1, dim=1), signs) for m in (one, one if sign > 0 else -one)]
    pairs = torch.cat(pairs, dim=1).contiguous(memory_format=torch.channels_last)  # (N, 2C, H, W)
    one, other = network(pairs).float().split(1, dim=1)
    return (one - other) / 2


def tie_filters(unet, odd=False):
    """Make a UNet equivariant, in place: replaces its convolutions and, if odd, its ReLUs, which must be modules.

    The maps that it takes and returns turn, but are no fields. odd: tie the filters by negation, too; maps then come in
    pairs, of the image and of the negated image.
    """
    image_fields, feature_fields = (2, 16) if odd else (1, 8)
    roles = {"first": {"inputs": image_fields}, "last": {"outputs": image_fields}}
    roles |= {f"expand.{i}": {"subpixels": 2} for i in range(len(unet.expand))}
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Conv2d):
            role = {"outputs": feature_fields, "inputs": feature_fields} | roles.get(name, {})
            unet.set_submodule(name, EquivariantConv2d(module, **role))
        elif odd and isinstance(module, nn.ReLU):
            unet.set_submodule(name, PairReLU())
