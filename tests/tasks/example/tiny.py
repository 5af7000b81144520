"""A task in one file: two networks take turns, one learns to multiply, the other follows it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from depixelation.engine.learner import Learner
from depixelation.engine.measuring import Measurement
from depixelation.engine.task import Task
from depixelation.figures.curves import column_panels
from depixelation.figures.sheets import sheet_rows
from utils import Config, inherited, key


class Scale(nn.Module):
    """Multiplies by a number that it learns."""

    def __init__(self, start=0.5):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([start]))

    def forward(self, inputs):
        return inputs * self.factor


@dataclass(frozen=True)
class TinyConfig(Config):
    """The keys of this task."""

    task: str = inherited("task", "tiny")
    name: str = inherited("name", "tiny")
    network: str = key("Scale", "the architecture", choices=("Scale",))
    target: float = key(2.0, "the factor to be learned", above=0)
    learning_rate: float = inherited("learning_rate", 0.05)


class Numbers(TensorDataset):
    """Pairs of inputs and their multiples."""

    names = [str(i) for i in range(40)]


class Tiny(Task):
    """Multiply. A batch: inputs and their multiples, (N, 1, 2, 2)."""

    Config = TinyConfig
    summary = "learn to multiply"
    networks = {"Scale": Scale}
    scores = ("closeness",)
    higher_is_better = True

    def example_input(self):
        return torch.ones(1, 1, 2, 2)

    def build(self, device, precision, processes):
        self.follower = Learner(Scale(0.0).to(device), self.config, precision, processes)
        return super().build(device, precision, processes)

    def learners(self, learner):
        return {**super().learners(learner), "follower": self.follower}

    def prepare(self):
        values = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        self.training_set = self.validation_set = Numbers(values, self.config.target * values)

    def batches(self, network, start):
        for batch in super().batches(network, start):
            yield [index for _, index in batch]

    def loss(self, learner, batch):
        inputs, targets = batch
        return {"train_loss": (learner(inputs) - targets).square().mean()}, len(inputs)

    def train_step(self, learner, batch, rate):
        losses, count = super().train_step(learner, batch, rate)
        follower_loss = (self.follower(batch[0]) - learner(batch[0]).detach()).square().mean()
        self.follower.step(follower_loss, count, rate)
        return {**losses, "follower_loss": follower_loss}, count

    def measure(self, predictors, dataset, keep_outputs=False):
        inputs, targets = dataset.tensors
        errors = [(predictor(inputs).cpu() - targets).abs().flatten(1).mean(1) for predictor in predictors]
        return Measurement({"closeness": -torch.stack(errors).double().numpy()}, np.ones(len(predictors)), inputs[:3])

    def evaluation_set(self, models, options):
        self.prepare()
        return self.validation_set, "40 numbers"

    def log_panels(self, rows):
        return column_panels(rows, (("train_loss", "training loss"), ("closeness", "closeness")))

    def sample_sheet(self, sample):
        return sheet_rows({"inputs": 255 * sample})


TASK = Tiny
