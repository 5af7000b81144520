"""A network as it predicts: on its device, in its precision, averaged over views."""

import contextlib
import time

import torch
from torch import nn


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
    """Calls a network on inputs of any device."""

    def __init__(self, network, device, precision=torch.float32, views=()):
        """network: in eval mode, or another function of tensors. precision: torch.dtype of its convolutions. views: the
        argument of that name, for a network that averages its predictions over views of its input; else ()."""
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
        """Super-resolution: how many pixels around a pixel its prediction depends on."""
        return self.network.reach


class Ensemble(Predictor):
    """The mean of several predictors' outputs, before they are rounded."""

    def __init__(self, predictors):
        self.predictors = list(predictors)
        super().__init__(self.predictors[0].network, self.predictors[0].device, self.predictors[0].precision)

    def compute(self, inputs):
        return torch.stack([predictor.compute(inputs) for predictor in self.predictors]).mean(dim=0)


class RealismBlend(Predictor):
    """What an accurate predictor restores, moved by `realism` towards what a refiner makes of that.

    Between the accurate end, R = 0, and the real-looking one, R = 1, lies the straight line. Along it accuracy is best
    traded for realism (Freirich et al. 2021) where the real end is the one nearest to the accurate one.
    """

    def __init__(self, accurate, refine, realism=1.0, draws=False, reach=0):
        """refine: (inputs, what `accurate` made of them, seed) -> outputs. draws: whether these depend on the seed.
        reach: of a refiner for super-resolution, on how many pixels around a pixel its output depends."""
        super().__init__(accurate.network, accurate.device, accurate.precision)
        self.accurate, self.refine, self.realism, self.draws = accurate, refine, realism, draws
        self.refiner_reach, self.seed = reach, 0

    def compute(self, inputs):
        restored = self.accurate.compute(inputs)
        if not self.realism:
            return restored
        refined = self.refine(inputs, restored, self.seed)
        return refined if self.realism == 1 else restored + self.realism * (refined - restored)

    def at(self, realism, seed=0):
        """The same blend with another realism, or another seed of what is drawn."""
        blend = RealismBlend(self.accurate, self.refine, realism, self.draws, self.refiner_reach)
        blend.seed = seed
        return blend

    def samples(self, count):
        """So many predictors of possible originals, as real as can be."""
        return [self.at(1.0, seed) for seed in range(count)]

    @property
    def reach(self):
        return max(self.refiner_reach, self.accurate.reach)
