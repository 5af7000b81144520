"""One network in training: its optimizers, and the moving average of its weights, which is what models keep."""

import copy
import itertools

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from depixelation.engine.optimizers import build_optimizers
from depixelation.engine.predictor import Predictor, autocast

EMA_EVERY = 4  # steps between updates of the moving average: each reads and writes all weights


class Learner:
    """One network in training."""

    def __init__(self, network, config, precision, processes):
        """network: on its device. precision: torch.dtype of its convolutions and of Muon's iteration. processes: the
        Processes that train it together."""
        self.network, self.precision, self.processes = network, precision, processes
        self.parameters = list(network.parameters())
        self.device = self.parameters[0].device
        self.model = processes.wrap(network, self.device)  # forward passes in training
        self.gradient_clip, self.steps = config.gradient_clip, 0
        self.kept = copy.deepcopy(network).eval()  # holds what is validated and written to models/NAME.pt
        self.average = AveragedModel(network, multi_avg_fn=ema_update(config.ema_decay), use_buffers=True)
        self.optimizers = build_optimizers(config.optimizer, network, config.weight_decay, precision)

    def __call__(self, inputs, **options):
        """The network's output under autocast, which ends with this call."""
        with autocast(self.device, self.precision):
            return self.model(inputs, **options)

    def frozen(self, inputs):
        """The same for the loss of another network: no gradient reaches these weights."""
        self.network.requires_grad_(False)
        try:
            with autocast(self.device, self.precision):
                return self.network(inputs)
        finally:
            self.network.requires_grad_(True)

    def step(self, loss, count, rate):
        """Take an optimizer step on this loss, at this learning rate.

        count: the number of images or pixels that this process's loss averages. It is the loss's weight in the mean
        over all processes, whose shares of a batch may differ in size.
        """
        count = torch.as_tensor(count, dtype=torch.float64, device=self.device)
        share = self.processes.count * count / self.processes.total(count)
        for group in itertools.chain(*(optimizer.param_groups for optimizer in self.optimizers)):
            group["lr"] = rate * group["scale"]
        self.network.zero_grad()
        (loss * share).backward()
        nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        if self.steps % EMA_EVERY == 0 or self.steps < EMA_EVERY:
            self.average.update_parameters(self.network)

    def kept_weights(self):
        """The averaged weights in half precision, as they are saved; .kept receives them, too."""
        weights = {
            name: t.half() if t.is_floating_point() else t for name, t in self.average.module.state_dict().items()
        }
        self.kept.load_state_dict(weights)
        return weights

    def predictor(self):
        """A Predictor of the kept weights, with one view, for validation in training."""
        return Predictor(self.kept, self.device, self.precision)

    def state_dict(self):
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        average = self.average.state_dict()
        return {"weights": self.network.state_dict(), "average": average, "optimizers": optimizers, "steps": self.steps}

    def load_state_dict(self, state):
        self.network.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps = state["steps"]


def ema_update(decay):
    """The update that AveragedModel applies every EMA_EVERY steps; early, when weights move fast, it decays less."""

    def update(averages, parameters, updates):
        steps = 1 + EMA_EVERY * int(updates)  # approximate: the first steps have an update each
        if averages[0].is_floating_point():  # the tensors of one call have one dtype
            torch._foreach_lerp_(averages, parameters, 1 - min(decay, steps / (9 + steps)) ** EMA_EVERY)
        else:
            torch._foreach_copy_(averages, parameters)

    return update
