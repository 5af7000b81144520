"""The optimizers: Muon for convolution filters, tied ones too, and AdamW for the rest."""

import math

import torch
from torch import nn

from depixelation.symmetry import EquivariantConv2d


class FilterMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for convolution filters: each is a matrix of outputs x (height * width * inputs).

    Its updates have the size of AdamW's (Liu et al. 2025), times the scale of its parameter group. PyTorch's own step
    always orthogonalizes in bfloat16; on a CPU without instructions for it, that takes 17 times as long as float32.
    """

    def __init__(self, filters, weight_decay, precision):
        """filters: pairs of a parameter and its EquivariantConv2d. For plain filters, (out, in, h, w) in channels_last
        format, the second is None and the optimizer keeps a view. precision: torch.dtype of the orthogonalization."""
        self.filters, self.precision = list(filters), precision
        matrices = [(layer.matrix if layer else _matrix)(weight.detach()) for weight, layer in self.filters]
        # For a tied filter this parameter only keys its momentum, as in states of earlier versions.
        scale = 3.0  # the best of 1, 3 and 6 in runs of three minutes
        group = {"params": list(map(nn.Parameter, matrices)), "scale": scale}
        super().__init__([group], weight_decay=weight_decay)

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for (weight, layer), matrix in zip(self.filters, group["params"]):
            gradient = weight.grad if layer else weight.grad.contiguous(memory_format=torch.channels_last)
            gradient = (layer.matrix if layer else _matrix)(gradient)
            momentum = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(gradient))
            momentum.lerp_(gradient, 1 - group["momentum"])
            update = orthogonalized(gradient.lerp(momentum, group["momentum"]).to(self.precision), group).float()
            weights, update = (weight, layer.untied(update)) if layer else (matrix, update)
            weights.mul_(1 - group["lr"] * group["weight_decay"])
            weights.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))  # AdamW's size (Liu et al.)


def orthogonalized(matrix, group):
    """Roughly the nearest matrix with orthonormal rows, or columns where these are fewer: Muon's Newton-Schulz
    iteration. group: the optimizer's parameter group, which holds the coefficients."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalized(matrix.T, group).T
    x = matrix / matrix.norm().clamp(min=group["eps"])
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _matrix(filters):
    return filters.permute(0, 2, 3, 1).view(len(filters), -1)


def build_optimizers(kind, network, weight_decay, precision):
    """The optimizers that together train the network. muon: Muon for filters between 32 or more channels, else AdamW.

    adam: PyTorch's with its own defaults, so without weight decay, as exercise sheets use it. precision: torch.dtype of
    Muon's orthogonalization. The caller multiplies the learning rate of each parameter group by its "scale".
    """
    tied = {id(layer.weight): layer for layer in network.modules() if isinstance(layer, EquivariantConv2d)}
    filters = [(p, tied.get(id(p))) for p in network.parameters() if kind == "muon"]
    filters = [(p, layer) for p, layer in filters if _is_wide(layer.filters() if layer else p)]
    chosen = {id(p) for p, _ in filters}
    group = {"params": [p for p in network.parameters() if id(p) not in chosen], "scale": 1.0}
    if kind == "adam":
        return [torch.optim.Adam([group], fused=True)]
    adamw = torch.optim.AdamW([group], betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    return [adamw, FilterMuon(filters, weight_decay, precision)] if filters else [adamw]


def _is_wide(filters):
    return filters.ndim == 4 and min(filters.shape[:2]) >= 32
