"""Flow: from the most accurate restoration to a likely original, a different one for each initial noise.

A rectified flow (Liu et al. 2023, arXiv:2209.03003) follows a learned velocity towards photos. It starts from a trained
network's restoration plus a little noise, like the posterior-mean rectified flow (Ohayon, Michaeli, Elad 2025,
arXiv:2410.00418). Unlike there, the velocity also depends on the restoration, so different noise leads to different
originals. Noise and velocity leave known pixels and block means alone, so every step keeps both.
"""

from dataclasses import dataclass

import torch

from architectures import FlowUNet, OddFlowUNet, without_means
from depixelation.engine.models import load_network, mismatch_error
from depixelation.engine.options import ModelOptions
from depixelation.engine.outputs import file_digest
from depixelation.engine.predictor import RealismBlend, autocast
from depixelation.engine.processes import Processes
from depixelation.engine.restoration import to_inputs
from depixelation.figures.curves import column_panels
from depixelation.mosaics.rectangle_tasks import RectangleTask, RestorationConfig, random_view
from depixelation.tasks.depixelation import Depixelation
from utils import Config, inherited, key

NETWORKS = {network.__name__: network for network in (OddFlowUNet, FlowUNet)}


@dataclass(frozen=True)
class FlowConfig(Config):
    """The keys of the flow."""

    task: str = inherited("task", "flow")
    name: str = inherited("name", "realism")  # models/flow.pt is shipped
    network: str = key("OddFlowUNet", "the architecture", choices=tuple(NETWORKS))
    init: str = key(
        "models/photos_cpu.pt",
        "the accurate model that the flow starts from; its weights initialise the flow's",
        path=True,
        may_change=True,
    )
    crop_scale: list = inherited("crop_scale", [0.7, 1.0], RestorationConfig)


class Flow(RectangleTask):
    """Its score, the RMSE at the end of the flow, is the price of realism."""

    Config = FlowConfig
    summary = "make restored rectangles look real (--realism)"
    networks = NETWORKS
    keeps_last = True
    preview_images = 0  # one flow takes as long as many predictions
    restorer = None  # the accurate network and the Config that it was trained with

    def example_input(self):
        inputs = super().example_input()
        return torch.cat([inputs, inputs[:, :1].expand(-1, 3, -1, -1)], dim=1)

    def accurate(self, device):
        """The network that the flow starts from, in eval mode, and the Config that it was trained with."""
        if self.restorer is None:
            task = Depixelation(Depixelation.Config())
            network, trained_with, _ = load_network(task, self.config.init, torch.device("cpu"), "--init")
            self.restorer = network.requires_grad_(False), trained_with
        return self.restorer[0].to(device), self.restorer[1]

    def build(self, device, precision, processes):
        self.accurate(device)
        self.sources = {"init": file_digest(self.config.init)}
        return super().build(device, precision, processes)

    def load_weights(self, network, checkpoint, path):
        """Load the accurate network's weights, except convolutions with other inputs or outputs."""
        own, weights = network.state_dict(), checkpoint["weights"]
        fit = {n: t for n, t in weights.items() if n in own and own[n].shape == t.shape and not n.startswith("last.")}
        if not fit:
            raise mismatch_error(network, checkpoint, path)
        network.load_state_dict({**own, **fit})

    def loss(self, learner, batch):
        """The mean squared error of the velocity, in units of the surrounding grey values' deviation."""
        pixelated_images, known_arrays, images = batch
        inputs = to_inputs(pixelated_images, known_arrays)
        with torch.no_grad():
            with autocast(inputs.device, learner.precision):
                restored = self.accurate(inputs.device)[0](inputs)
            noise, time = self.draw(images)
            start, deviation, grid = learner.network.start(inputs, restored, noise.to(inputs.device))
            time, unknown = time.to(inputs.device).expand_as(start), ~known_arrays
            velocity = without_means(grid, images / 255 - start)
            inputs = torch.cat([inputs, restored, start + time * velocity, time], dim=1)
        found = learner(inputs, **random_view(learner.network))
        errors = ((found - velocity) / deviation).square() * unknown
        loss = (errors.sum((1, 2, 3)) / unknown.sum((1, 2, 3))).mean()
        return {"train_loss": loss}, len(images)

    def draw(self, images):
        """Noise, (N, 1, H, W), and time, (N, 1, 1, 1), for the N images that are this process's share of a batch.

        Each process draws for the whole batch, so that several train as one does. The draws come from the CPU's
        generator, whose state --resume restores.
        """
        processes, whole = Processes(), self.config.batch_size
        drawn = torch.randn(whole, *images.shape[1:]), torch.rand(whole, 1, 1, 1)
        return [values[processes.rank :: processes.count][: len(images)] for values in drawn]

    # ---------------------------------------------------------------------------------------------- measuring

    def predictor(self, network, trained_with, precision, options):
        """Predicts the end of the flow, which starts from the accurate network's output."""
        device = next(network.parameters()).device
        restorer, made_by = self.accurate(device)
        views = ModelOptions(views=options.views or self.default_views)
        accurate = Depixelation(Depixelation.Config()).predictor(restorer, made_by, precision, views)
        return RealismBlend(accurate, network.sample, draws=True)

    def validate(self, predictor, images=None):
        return super().validate(self.predictor(predictor.network, None, predictor.precision, ModelOptions()), images)

    # ---------------------------------------------------------------------------------------------- what is drawn

    def log_panels(self, rows):
        columns = (("train_loss", "training loss, mean squared error of the velocity"), ("score", "score at the end"))
        return column_panels(rows, columns)


TASK = Flow
