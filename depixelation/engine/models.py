"""Models from files: trained networks, what they were trained on, and how they predict."""

import glob
import json
import os
import sys
from dataclasses import dataclass, field

import torch

from architectures import ResidualBlock
from depixelation.engine.predictor import Predictor
from depixelation.engine.processes import choose_device, choose_precision
from utils import Config, UserError, config_from_dict, display_path, load_checkpoint


@dataclass
class Model:
    """A trained network, or a baseline, as tables know it."""

    name: str
    predictor: Predictor | None  # None: only its record counts
    trained_with: Config | None = None
    record: list = field(default_factory=list)  # training_record
    score: float | None = None  # the deciding one, when the model was saved
    asked_for: bool = True  # False: a reference beside those that were named


def training_record(checkpoint):
    """The images a model was trained on, after its predecessors': a list of {"images": name, "held_out": 1-D int64}.

    held_out: a tensor as from holdout.held_out_digests; empty where unknown, as in models of earlier versions.
    """
    record = checkpoint.get("record")
    if isinstance(record, list) and record and all(map(_is_entry, record)):
        return record
    return [{"images": str(checkpoint["config"].get("images")), "held_out": torch.empty(0, dtype=torch.int64)}]


def _is_entry(entry):
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("images"), str)
        and isinstance(entry.get("held_out"), torch.Tensor)
        and entry["held_out"].layout == torch.strided
        and entry["held_out"].device.type == "cpu"
        and entry["held_out"].dtype == torch.int64
        and entry["held_out"].ndim == 1
        and entry["held_out"].is_contiguous()  # not a few numbers expanded to a huge shape
    )


def load_weights(network, checkpoint, path):
    """Load weights from a checkpoint, as utils.load_checkpoint returns it, into a network. Raises UserError.

    A network with more channels or residual blocks starts as the smaller one: the new parts add zero.
    """
    try:
        own, weights = network.state_dict(), checkpoint["weights"]
        new = [name for name in own if name not in weights]
        deeper = all(isinstance(network.get_submodule(name.rsplit(".", 2)[0]), ResidualBlock) for name in new)
        wider = {name: _widened(own[name], old) if name in own else old for name, old in weights.items()}
        network.load_state_dict({**own, **wider} if deeper else wider)
        finite = all(torch.isfinite(t).all() for t in weights.values() if t.is_floating_point())
    except (RuntimeError, AttributeError, IndexError, TypeError, NotImplementedError):  # meta, sparse tensors too
        raise mismatch_error(network, checkpoint, path) from None
    if not finite:
        raise UserError(f"{path}: holds weights that are not finite; train it again with a smaller --learning_rate")


def mismatch_error(network, checkpoint, path):
    """The UserError for weights of another network."""
    made_by = checkpoint["config"].get("network") if isinstance(checkpoint["config"], dict) else None
    return UserError(
        f"{path}: its weights (of {made_by}) do not fit {type(network).__name__} with these network_options; "
        f"name a model of the same architecture, or that one with --network and --network_options"
    )


def _widened(new, old):
    """A layer's weights or bias in a network with more channels: no old output depends on a new input."""
    if new.shape == old.shape:
        return old
    if new.shape[2:] != old.shape[2:]:
        raise TypeError("filters of another kind")
    tensor = new.clone()
    tensor[: len(old)] = 0
    tensor[tuple(map(slice, old.shape))] = old
    return tensor


def chosen_model(task, options):
    """The model file that the options name, or the shipped one until a model is trained."""
    path = options.model or task.config.file("models", ".pt", options.name)
    if options.model or options.name or os.path.exists(path):
        return path
    if task.shipped and os.path.exists(task.shipped):
        return task.shipped
    found = glob.glob(os.path.join(glob.escape(os.path.dirname(path)), "*.pt"))
    found = [each for each in found if not each.endswith(".last.pt")]
    return found[0] if len(found) == 1 else task.shipped or path  # an unpacked hand-in has one


def load_network(task, path, device, option="--model"):
    """(network in eval mode, on the device; the Config it was trained with; its checkpoint). Raises UserError.

    The file decides the architecture. option: the one that names the file, for the error message.
    """
    checkpoint = load_checkpoint(path, f"train one first with python main.py, or name one with {option} FILE")
    check_task(task, checkpoint, path)
    trained_with = config_from_dict(type(task.config), checkpoint["config"], path)
    network = task.build_network(trained_with.network, trained_with.network_options)
    load_weights(network, checkpoint, path)
    return network.eval().to(device, memory_format=torch.channels_last), trained_with, checkpoint


def check_task(task, checkpoint, path):
    """Raise UserError if the model's file was made for another task."""
    made_for, known = checkpoint["config"].get("task", "depixelation"), (*task.also_loads, task.config.task)
    if made_for not in known:
        raise UserError(f"{path}: is a model for --task {made_for}, not for {' or '.join(known)}")


def load_models(task, options, paths):
    """(Models of these files, or else of the configured one; device; precision). Raises UserError.

    Precision auto prefers the precision of the first model's validation, see choose_precision.
    """
    device, named = choose_device(task.config.device), options.model
    if paths and named and paths != [named]:
        listed = ", ".join(map(display_path, paths))
        raise UserError(f"model: {display_path(named)} is named beside {listed}; leave --model out")
    if options.views and options.views > task.most_views:
        raise UserError(f"command line: views is {options.views}, but must be at most {task.most_views}")
    baselines = task.baselines()
    paths = paths or [options.network if options.network in baselines and not named else chosen_model(task, options)]
    loaded = {path: load_network(task, path, device) for path in paths if path not in baselines}
    for path, (_, trained_with, _) in loaded.items():
        check_network(options, trained_with, path)
    kept = next((validated_in(checkpoint, device) for _, _, checkpoint in loaded.values()), None)
    precision = choose_precision(task.config.precision, device, kept if paths[0] in loaded else None)
    models = []
    for path in paths:
        if path in loaded:
            network, trained_with, checkpoint = loaded[path]
            models.append(as_model(task, path, network, trained_with, checkpoint, precision, options))
            print(f"{describe(task, models[-1])}; {device.type}, {str(precision)[6:]}")
        else:
            models.append(Model(path, Predictor(baselines[path], device, precision)))
    return models, device, precision


def describe(task, model):
    """A model in a few words: its network, its file, and its score on held-out images."""
    words = f"{model.trained_with.network} from {model.name}"
    if isinstance(model.score, float):
        source = model.record[-1]["images"]
        images = "drawn images" if source == "synthetic" else f"images of {display_path(source)}"
        words += f", {task.scores[0]} {model.score:.{task.decimals}f} on held-out {images}"
    return words


def as_model(task, path, network, trained_with, checkpoint, precision, options):
    """The Model of what `load_network` returned."""
    predictor = task.predictor(network, trained_with, precision, options)
    score = checkpoint.get(task.scores[0])
    return Model(display_path(path), predictor, trained_with, training_record(checkpoint), score)


def check_network(options, trained_with, path):
    """Raise UserError if the options name another network than the file's."""
    for name in ("network", "network_options"):
        named, saved = getattr(options, name), getattr(trained_with, name)
        if named is not None and named != saved:
            raise UserError(f"{name}: that of {display_path(path)} is {json.dumps(saved)}; leave --{name} out")


def validated_in(checkpoint, device):
    """The precision in which a model was validated, if on the same kind of device; else None."""
    known = checkpoint.get("device") == device.type and checkpoint.get("precision") in ("float32", "bfloat16")
    return checkpoint["precision"] if known else None


def warn_of_leaks(task):
    """Warn if a model that this one starts from may have been trained on images that are held out now."""
    for entry in task.inherited:
        known, same = entry["held_out"], entry["images"] == task.config.images_name()
        if same and len(known) and not torch.isin(task.held_out, known).all():
            print(
                f"warning: a model that this one starts from was trained on {display_path(entry['images'])}, with "
                "others held out, so scores may be too good; leave the images and --validation_fraction as they were",
                file=sys.stderr,
            )
