"""--realism R: loads the refiner and blends it with an accurate Predictor."""

import os

from depixelation.engine.models import Model, load_network, training_record
from depixelation.engine.options import ModelOptions
from depixelation.engine.predictor import RealismBlend
from depixelation.tasks import load_task
from depixelation.tasks.flow import Flow
from utils import UserError, config_from_dict, display_path, load_checkpoint


def blend_of(task, accurate, options):
    """The RealismBlend of an accurate Predictor, or that Predictor itself if neither realism nor samples are wanted."""
    if not options.realism and not options.samples:
        return accurate
    path = options.refiner or task.refiner
    checkpoint = load_checkpoint(
        path, "train a model for --realism with --adversarial, or name one with --refiner FILE"
    )
    if checkpoint["config"].get("task") == "flow" and task.refined_by_flow:
        network, _, _ = load_network(Flow(Flow.Config()), path, accurate.device)
        return RealismBlend(accurate, network.sample, options.realism, draws=True)
    if options.samples:
        raise UserError(
            f"samples: {display_path(path)} knows one original only; name a model of --task flow with --refiner"
        )
    network, trained_with, _ = load_network(task, path, accurate.device)
    real = task.predictor(network, trained_with, accurate.precision, ModelOptions(views=options.views))
    reach = getattr(network, "reach", 0)
    return RealismBlend(accurate, lambda inputs, restored, seed: real.compute(inputs), options.realism, reach=reach)


def measured_refiner(task, options):
    """The path of the refiner that --evaluate measures; None where it measures none."""
    path = options.refiner or task.refiner
    return path if options.realism and (options.refiner or os.path.exists(path)) else None


def refiner_record(path):
    """A Model without a predictor, for the record of what the refiner was trained on."""
    checkpoint = load_checkpoint(path, "name another one with --refiner FILE")
    config_type = load_task(checkpoint["config"].get("task", "depixelation"), path).Config
    trained_with = config_from_dict(config_type, checkpoint["config"], path)
    return Model(display_path(path), None, trained_with, training_record(checkpoint))
