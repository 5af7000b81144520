"""Predictors: a network on its device, in its precision, averaged over views; and combinations of them."""

import contextlib
import time

import torch
from torch import nn

REMEMBERED = 2**25  # values (128 MB) that a Remembered keeps at most


def autocast(device, precision):
    """The context in which convolutions have this precision, a torch.dtype."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


class Timed:
    """Adds up the seconds that its work takes."""

    seconds = 0.0

    @contextlib.contextmanager
    def timed(self):
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


class Predictor(Timed):
    """Calls a network on inputs from any device."""

    def __init__(self, network, device, precision=torch.float32, views=()):
        """network: in eval mode, or another function of tensors. precision: torch.dtype of its convolutions. views: the
        argument `views` of a network that averages its predictions over views of its input; else ()."""
        self.network = network.to(device) if isinstance(network, nn.Module) else network
        self.device, self.precision, self.views = device, precision, tuple(views)

    @torch.inference_mode()
    def __call__(self, inputs):
        """The outputs, float32, on the network's device."""
        with self.timed(), autocast(self.device, self.precision):
            outputs = self.compute(inputs.to(self.device)).float()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return outputs

    def compute(self, inputs):
        """The outputs for inputs on the network's device. A subclass may combine several networks here."""
        return self.network(inputs, views=self.views) if self.views else self.network(inputs)

    @property
    def reach(self):
        """Super-resolution: how many input pixels, to each side, an output pixel depends on."""
        return self.network.reach


class Ensemble(Predictor):
    """The mean of several predictors' outputs, before they are rounded."""

    def __init__(self, predictors):
        self.predictors = list(predictors)
        super().__init__(self.predictors[0].network, self.predictors[0].device, self.predictors[0].precision)

    def compute(self, inputs):
        return torch.stack([predictor.compute(inputs) for predictor in self.predictors]).mean(dim=0)


class Remembered(Predictor):
    """Caches outputs: the inputs of an area come again for each of its possible originals."""

    def __init__(self, predictor):
        super().__init__(predictor.network, predictor.device, predictor.precision)
        self.predictor, self.kept = predictor, []  # pairs of inputs and outputs, the newest last

    def compute(self, inputs):
        for known, outputs in self.kept:
            if known.shape == inputs.shape and torch.equal(known, inputs):
                return outputs
        outputs = self.predictor.compute(inputs)
        self.kept.append((inputs.clone(), outputs))
        while sum(known.numel() + outputs.numel() for known, outputs in self.kept) > REMEMBERED:
            del self.kept[0]
        return outputs

    @property
    def reach(self):
        return self.predictor.reach


class RealismBlend(Predictor):
    """Blends an accurate predictor's restoration with a refiner's version of it, in proportion to `realism`.

    The blend moves on a straight line from the accurate end, R = 0, to the real-looking one, R = 1. This is the best
    trade of accuracy for realism (Freirich et al. 2021) if no other real-looking end is nearer to the accurate one.
    """

    def __init__(self, accurate, refine, realism=1.0, draws=False, reach=0):
        """refine: (inputs, outputs of `accurate`, seed) -> outputs. draws: whether these depend on the seed. reach:
        of a refiner for super-resolution, see Predictor.reach."""
        super().__init__(accurate.network, accurate.device, accurate.precision)
        self.accurate = accurate if isinstance(accurate, Remembered) else Remembered(accurate)  # shared with `at`
        self.refine, self.realism, self.draws = refine, realism, draws
        self.refiner_reach, self.seed = reach, 0

    def compute(self, inputs):
        restored = self.accurate.compute(inputs)
        if not self.realism:
            return restored
        refined = self.refine(inputs, restored, self.seed)
        return refined if self.realism == 1 else restored + self.realism * (refined - restored)

    def at(self, realism, seed=0):
        """The same blend with another realism, or another seed."""
        blend = RealismBlend(self.accurate, self.refine, realism, self.draws, self.refiner_reach)
        blend.seed = seed
        return blend

    def samples(self, count):
        """`count` predictors of possible originals, at full realism, each with its own seed."""
        return [self.at(1.0, seed) for seed in range(count)]

    @property
    def reach(self):
        return max(self.refiner_reach, self.accurate.reach)
