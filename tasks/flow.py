"""Flow: from the most accurate restoration to a likely original, and to another one for each noise that it starts from.

A rectified flow (Liu et al. 2023, arXiv:2209.03003): it starts from what a trained network restores, plus a little
noise, as the posterior-mean rectified flow (Ohayon, Michaeli, Elad 2025, arXiv:2410.00418), and follows a learned
velocity towards photos. Other than there, the velocity depends on the restoration too, so that noise leads to many
possible originals. Known pixels and block means have no part in noise and velocity: every step keeps them.
"""

from dataclasses import dataclass

import torch

from architectures import BlockGrid, EquivariantUNet, OddUNet, ResidualUNet
from processes import Processes
from symmetry import transform
from tasks import Task
from tasks.depixelation import Depixelation, DepixelationConfig, first_symmetries, random_symmetry
from tasks.evaluation import load_network, misfit, plot_columns
from tasks.outputs import file_digest
from tasks.restoration import to_inputs
from utils import Config, inherited, key

STEPS = 25  # of Euler's method; fewer give smoother areas
NOISE = 0.25  # its deviation, as a share of that of the grey values in and near the rectangle


def without_means(grid, maps):
    """(N, 1, H, W) -> the same without the means of the BlockGrid's blocks inside the rectangles, 0 elsewhere."""
    return maps * grid.unknown - grid.means(maps)


class FlowUNet(ResidualUNet):
    """The velocity, (N, 1, H, W) a unit of time, of (N, 5, H, W): image, known mask, restoration, present state, time
    from 0 to 1."""

    MAPS = 4, 1

    def forward(self, inputs, symmetries=(0,)):
        return super().forward(inputs, symmetries) * (inputs[:, 1:2] == 0)

    def _restore(self, maps, unknown, symmetries):
        image, restored, now, time = maps[:, :1], *maps[:, 2:].split(1, dim=1)
        with torch.autocast(maps.device.type, enabled=False):
            grid = BlockGrid(image, unknown, self.sizes)
            center, deviation = grid.statistics(restored)
            seen = [(restored - center) / deviation, (now - center) / deviation, 1 - unknown.float(), time]
        outputs = [transform(self.residual, torch.cat(seen, dim=1), symmetry) for symmetry in symmetries]
        with torch.autocast(maps.device.type, enabled=False):
            return deviation * without_means(grid, sum(outputs) / len(outputs))

    def start(self, inputs, restored, noise):
        """(where the flow begins, the deviation that errors are measured in, the BlockGrid)."""
        with torch.autocast(inputs.device.type, enabled=False):
            grid = BlockGrid(inputs[:, :1], inputs[:, 1:2] == 0, self.sizes)
            deviation = grid.statistics(restored)[1]
            return restored + NOISE * deviation * without_means(grid, noise), deviation, grid

    def sample(self, inputs, restored, seed=0, steps=None):
        """A likely original, (N, 1, H, W), of inputs, (N, 2, H, W), and what an accurate network makes of them.

        Its block means are those of the restoration. Another one for each seed; images that are restored together get
        the same noise, so that none depends on others.
        """
        noise = torch.randn((1, 1, *inputs.shape[2:]), generator=torch.Generator().manual_seed(seed))
        steps = steps or STEPS
        now, _, grid = self.start(inputs, restored, noise.to(inputs.device))
        for step in range(steps):
            time = torch.full_like(now, step / steps)
            now = now + self(torch.cat([inputs, restored, now, time], dim=1)) / steps
        with torch.autocast(inputs.device.type, enabled=False):
            now = grid.within_range(now, grid.means(restored.clamp(0, 1)))
        return torch.where(grid.unknown, now, restored)


class EquivariantFlowUNet(FlowUNet, EquivariantUNet):
    """The same with equivariant filters. channels: multiples of 8."""


class OddFlowUNet(FlowUNet, OddUNet):
    """The same, and odd. channels: multiples of 16."""

    MAPS = 8, 2
    SIGNS = -1, -1, 1, 1


NETWORKS = {network.__name__: network for network in (OddFlowUNet, EquivariantFlowUNet, FlowUNet)}


@dataclass
class FlowConfig(Config):
    """The keys of the flow."""

    task: str = inherited("task", "flow")
    name: str = inherited("name", "flow")
    network: str = key("OddFlowUNet", "the architecture", choices=tuple(NETWORKS))
    init: str = key(
        "models/photos_cpu.pt",
        "the accurate model that the flow starts from; its weights are the flow's first ones",
        path=True,
        may_change=True,
    )
    crop_scale: list = inherited("crop_scale", [0.7, 1.0], DepixelationConfig)
    views: int = inherited("views", 1, DepixelationConfig)


class Flow(Depixelation):
    """As depixelation; its score is the price of realism: the RMSE of what the flow ends at."""

    Config = FlowConfig
    summary = "make restored rectangles look real (--realism)"
    networks = NETWORKS
    actions = {}
    shipped = None
    keeps_last = True
    restorer = None  # the accurate network

    def example_input(self):
        inputs = super().example_input()
        return torch.cat([inputs, inputs[:, :1].expand(-1, 3, -1, -1)], dim=1)

    def accurate(self):
        """The network that the flow starts from, in eval mode."""
        task = Depixelation(DepixelationConfig())
        network, _, _ = load_network(task, self.config.init, set(), torch.device("cpu"), "--init")
        return network.requires_grad_(False)

    def build_parts(self):
        self.restorer, self.sources = self.accurate(), {"init": file_digest(self.config.init)}
        return super().build_parts()

    def load_weights(self, network, checkpoint, path):
        """Those of the accurate network, but for the convolutions that see and say something else."""
        own, weights = network.state_dict(), checkpoint["weights"]
        fit = {n: t for n, t in weights.items() if n in own and own[n].shape == t.shape and not n.startswith("last.")}
        if not fit:
            raise misfit(network, checkpoint, path)
        network.load_state_dict({**own, **fit})

    def loss(self, name, parts, batch):
        """The mean squared error of the velocity, in deviations of the grey values around."""
        pixelated_images, known_arrays, images = batch
        inputs, part = to_inputs(pixelated_images, known_arrays), parts[name]
        with torch.no_grad():
            with part.autocast(inputs):
                restored = self.restorer.to(inputs.device)(inputs)
            noise, time = self.draw(images)
            start, deviation, grid = part.network.start(inputs, restored, noise.to(inputs.device))
            time, unknown = time.to(inputs.device).expand_as(start), ~known_arrays
            velocity = without_means(grid, images / 255 - start)
            inputs = torch.cat([inputs, restored, start + time * velocity, time], dim=1)
        found = part(inputs, **random_symmetry(part.network))
        errors = ((found - velocity) / deviation).square() * unknown
        loss = (errors.sum((1, 2, 3)) / unknown.sum((1, 2, 3))).mean()
        return {"train_loss": loss}, len(images)

    def draw(self, images):
        """Noise, (N, 1, H, W), and time, (N, 1, 1, 1), for the N images that are this process's share of a batch.

        Each process draws for the whole batch, so that several train as one does. The CPU's generator is resumed.
        """
        processes, whole = Processes(), self.config.batch_size
        drawn = torch.randn(whole, *images.shape[1:]), torch.rand(whole, 1, 1, 1)
        return [values[processes.rank :: processes.count][: len(images)] for values in drawn]

    def predictor(self, network, made):
        """What the flow ends at, from the accurate network's output."""
        self.restorer = (self.restorer or self.accurate()).to(next(network.parameters()).device)
        views = first_symmetries(self.restorer, self.config.views)
        return lambda inputs: network.sample(inputs, self.restorer(inputs, **views))

    def validate(self, network, device, precision):
        return super().validate(self.predictor(network, None), device, precision)

    compared = Task.compared

    def plot_log(self, rows, path):
        columns = (("train_loss", "training loss, mean squared error of the velocity"), ("score", "score at the end"))
        plot_columns(rows, columns, path)


TASK = Flow
