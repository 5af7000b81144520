"""--realism R: from the most accurate restoration, R = 0, to one that looks real, R = 1; --samples: possible originals.

What lies on the straight line between both costs hardly more error than it must for its realism (Freirich et al. 2021).
"""

from functools import partial

import torch

from tasks import load_task
from tasks.evaluation import Model, load_network, plot_sheet
from tasks.restoration import restore
from utils import UserError, load_checkpoint, show


class Refined:
    """A predictor: what an accurate one makes of its inputs, and by the share `realism` what a refiner makes of that.

    refine: (inputs, what `predict` made of them, seed) -> outputs. drawn: whether they depend on the seed.
    """

    def __init__(self, predict, refine, realism, drawn=False):
        self.predict, self.refine, self.realism, self.drawn = predict, refine, realism, drawn
        self.reach = getattr(predict, "reach", 0)  # of super-resolution: on how many pixels around a pixel depends

    def __call__(self, inputs, seed=0, realism=None):
        realism = self.realism if realism is None else realism
        restored = self.predict(inputs)
        return restored + realism * (self.refine(inputs, restored, seed) - restored) if realism else restored

    def samples(self, count):
        """As many predictors of possible originals, as real as can be."""
        return [partial(self, seed=seed, realism=1.0) for seed in range(count)]


def refined(task, predict, device):
    """The predictor that config.realism wants: `predict` itself where that is 0, and no samples are wanted."""
    config = task.config
    samples = getattr(config, "samples", None)
    if not config.realism and not samples:
        return predict
    path = config.refiner or task.refiner
    checkpoint = load_checkpoint(path, "train one with --task flow or --adversarial, or name one with --refiner FILE")
    made_for = checkpoint["config"].get("task", "depixelation")
    if made_for == "flow" and config.task == "depixelation":
        flow = load_task("flow")
        network, _, _ = load_network(flow(flow.Config()), path, set(), device)
        return Refined(predict, network.sample, config.realism, drawn=True)
    if samples:
        raise UserError(f"samples: {show(path)} knows one original only; name a model of --task flow with --refiner")
    network, _, _ = load_network(task, path, set(), device)
    return Refined(predict, lambda inputs, restored, seed: network(inputs), config.realism)


def with_refined(task, models, device):
    """The Models of a comparison, and if realism is to be measured the first of them with the refiner."""
    if not getattr(task.config, "realism", 0):
        return models
    predict = refined(task, models[0].predict, device)
    return models + [Model(f"{models[0].name}, R = {task.config.realism:g}", predict)]


SPREAD = 4  # how much brighter than the deviation of possible originals a map of it is drawn


def plot_possible(predict, pixelated_images, known_arrays, images, count, device, path):
    """A sheet as a picture, a row an image: truth (if images is not None), pixelated, R = 0, 0.5, 1, so many possible
    originals, and how far they differ. All (N, 1, H, W), uint8, known_arrays bool.
    """
    given = pixelated_images.to(device), known_arrays.to(device), torch.float32
    columns = {"truth": images, "pixelated": pixelated_images}
    columns |= {f"R = {realism:g}": restore(partial(predict, realism=realism), *given) for realism in (0, 0.5, 1)}
    possible = [restore(sample, *given) for sample in predict.samples(count if predict.drawn else 0)]
    columns |= {f"possible {i + 1}": values for i, values in enumerate(possible)}
    if possible:
        spread = torch.stack(possible).float().std(dim=0, correction=0)
        columns[f"{SPREAD} times their deviation"] = (SPREAD * spread).clamp(max=255)
    columns = {title: values.cpu() for title, values in columns.items() if values is not None}
    rows = [[(values[i, 0], title * (i == 0), "") for title, values in columns.items()] for i in range(len(given[0]))]
    plot_sheet(rows, path)
