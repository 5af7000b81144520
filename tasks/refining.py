"""--realism R: from the most accurate restoration, R = 0, to one that looks real, R = 1; --samples: possible originals.

Between both lies the straight line, along which accuracy is best traded for realism (Freirich et al. 2021) where the
real end is the one nearest to the accurate one.
"""

import os
from functools import partial

import torch

from tasks import load_task
from tasks.evaluation import Model, load_network, plot_images, training_record
from tasks.restoration import restore
from utils import UserError, config_from_dict, load_checkpoint, show


class Refined:
    """A predictor: what an accurate one makes of its inputs, moved by `realism` towards what a refiner makes of that.

    refine: (inputs, what `predict` made of them, seed) -> outputs. drawn: whether they depend on the seed. reach: of
    super-resolution's refiner, on how many pixels around a pixel depends.
    """

    def __init__(self, predict, refine, realism, drawn=False, reach=0):
        self.predict, self.refine, self.realism, self.drawn = predict, refine, realism, drawn
        self.reach = max(reach, getattr(predict, "reach", 0))

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
    checkpoint = load_checkpoint(
        path, "train a model for --realism with --adversarial, or name one with --refiner FILE"
    )
    if checkpoint["config"].get("task") == "flow" and isinstance(task, load_task("depixelation")):
        flow = load_task("flow")
        network, _, _ = load_network(flow(flow.Config()), path, set(), device)
        return Refined(predict, network.sample, config.realism, drawn=True)
    if samples:
        raise UserError(f"samples: {show(path)} knows one original only; name a model of --task flow with --refiner")
    network, made, _ = load_network(task, path, set(), device)
    real = task.predictor(network, made)
    reach = getattr(network, "reach", 0)
    return Refined(predict, lambda inputs, restored, seed: real(inputs), config.realism, reach=reach)


def measures_refiner(task):
    """Whether --evaluate measures what a refiner brings."""
    config = task.config
    return getattr(config, "realism", 0) and (config.refiner or os.path.exists(task.refiner))


def with_refiner(task, models):
    """The Models whose training decides on which images they may be measured: with the refiner, if it is measured."""
    if not measures_refiner(task):
        return models
    path = task.config.refiner or task.refiner
    checkpoint = load_checkpoint(path, "name another one with --refiner FILE")
    made = config_from_dict(
        load_task(checkpoint["config"].get("task", "depixelation"), path).Config, checkpoint["config"], path
    )
    return models + [Model(show(path), None, made, record=training_record(checkpoint))]


def with_refined(task, models, device):
    """The Models of a comparison, and the first of them with the refiner, if that is measured."""
    if not measures_refiner(task):
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
    plot_images({title: values.cpu() for title, values in columns.items() if values is not None}, path)
