"""The exercises that the training loop knows, a file each: `Task` says what main.py asks of one.

A module of this package is a task if it has a TASK, a subclass of Task; `--task NAME` chooses the module NAME. Nothing
else needs to know of it.
"""

import difflib
import importlib
import json
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.data import default_collate

from datasets import epochs
from tasks.evaluation import Model, check_task, load_weights
from utils import Config, UserError, digest

MAX_PARAMETERS = 10**9


class Action(NamedTuple):
    """A command of a task: an option of the command line, and what it calls."""

    operands: str | None  # how many follow it: nargs of argparse, or None for none
    metavar: object
    help: str
    run: Callable  # run(task, given, operands) -> exit status; given: the set of keys named as options


class Task:
    """One exercise. A subclass says what is its own; what stands here serves most tasks as it is."""

    Config = Config  # its keys and their defaults
    summary = ""  # a line for --help
    networks = {}  # name: class, the first is the default
    parts = ("network",)  # the networks that are trained, each by its own loss; models/NAME.pt holds the first
    scores = ("score",)  # columns of the log; the first decides which model is the best
    higher_is_better = False
    keeps_last = False  # whether the last averaged weights are kept, not those with the best score
    decimals = 3  # of the scores, as they are printed
    curves = ()  # columns of the log that --compare draws; none: the training loss and the scores
    also_loads = ()  # other tasks whose models can do this one, too
    actions = {}  # name: Action; those that every task has are in main.py
    shipped = None  # models/NAME.pt that predicts as long as nothing was trained

    def __init__(self, config):
        self.config = config
        self.training_set = self.validation_set = None
        self.held_out = torch.empty(0, dtype=torch.int64)  # images.held_out_digests, where a task can tell
        self.inherited = []  # evaluation.training_record of other models that this one learns from
        self.sources = {}  # {key: outputs.file_digest} of the models' files that each step of training needs

    # ---------------------------------------------------------------------------------------------- what is trained

    def example_input(self):
        """An input that every network of the task can take, (1, C, H, W) float32; --summary counts its FLOPs."""
        raise NotImplementedError

    def build_parts(self):
        """{part: network in training mode}, initialised from the global generator."""
        return {self.parts[0]: self.build_network(self.config.network, self.config.network_options)}

    def build_network(self, name, options):
        """A network in training mode. Options that it cannot be built or run with raise UserError."""
        try:
            with torch.device("meta"):  # without memory: options may come from a file of others
                if sum(p.numel() for p in self.networks[name](**options).parameters()) > MAX_PARAMETERS:
                    raise ValueError(f"over {MAX_PARAMETERS:,} parameters")
            network, example = self.networks[name](**options), self.example_input()
            with torch.inference_mode():
                shape = network.eval()(example).shape
                with torch.random.fork_rng([], enabled=bool(options)):
                    usual = self.networks[name]().eval()(example).shape if options else shape
            if shape != usual:
                raise ValueError(f"its output would be {tuple(shape)}, not {tuple(usual)}")
            return network.train()
        except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError, ArithmeticError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"network_options: {name} cannot be built with {json.dumps(options)} ({reason})") from None

    def load_weights(self, network, checkpoint, path):
        """Start the first part from another model's file, --init. Raises UserError."""
        check_task(self, checkpoint, path)
        load_weights(network, checkpoint, path)

    def loss(self, name, parts, batch):
        """What the part of this name is to minimise on a batch, and what else the log shall hold.

        parts: {name: Part}, each a callable forward pass. batch: as collated, on the device. Returns ({column: mean},
        number of images or pixels that these are means of, an int or a tensor); the first column is minimised.
        """
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------- data

    def prepare(self):
        """Set training_set and validation_set, Datasets with a list `names`."""
        raise NotImplementedError

    def fingerprint(self):
        """Tells whether a resumed run trains on the same images."""
        return digest(self.training_set.names)

    def count_images(self):
        """How many different images there are to train on."""
        data = self.training_set
        return min(len(getattr(data, "indices", data)), self.config.max_images or len(data))

    def batches(self, network, start):
        """Lists of keys for training_set, a batch each, from step `start` on, without end. Here (epoch, index)."""
        config, count = self.config, len(self.training_set)
        for epoch, step, rng in epochs(count, config.seed, config.batch_size, start):
            order = rng.permutation(count)
            for first in range(step * config.batch_size, count, config.batch_size):
                yield [(epoch, int(i)) for i in order[first : first + config.batch_size]]

    collate = staticmethod(default_collate)

    # ---------------------------------------------------------------------------------------------- what is measured

    def measure(self, predictors, dataset, device, precision):
        """The figures of several predictors on a dataset: an evaluation.Measurement."""
        raise NotImplementedError

    def predictor(self, network, made):
        """A trained network, in eval mode, as it predicts. made: the Config that it was trained with."""
        return network

    def baselines(self):
        """{name: predictor} of what needs no training; compared by --evaluate."""
        return {}

    def validate(self, network, device, precision):
        """(figures for the log, sample for plot_samples) of the network on validation_set."""
        measured = self.measure([network], self.validation_set, device, precision)
        return {name: float(errors[0].mean()) for name, errors in measured.figures.items()}, measured.sample

    def reference(self, row):
        """What a line of progress says beside the score: of a baseline on the same images, say."""
        return ""

    def evaluation_set(self, given, models):
        """(dataset with truth, what it is in words) for --evaluate. models: evaluation.Models, compared on it."""
        raise NotImplementedError

    def compared(self, models, device):
        """The Models of a comparison: those asked for, and the baselines that are not yet among them."""
        names = [model.name for model in models]
        return models + [Model(name, predict) for name, predict in self.baselines().items() if name not in names]

    def columns(self, models, measured):
        """{title: [text for each model]}: what --evaluate's table shows beside the scores."""
        return {}

    def report(self, models, measured):
        """Print what else --evaluate has to tell, draw its pictures, and return their paths."""
        path = getattr(self.config, "sheet", None) or self.config.file("losses", "_evaluation_samples.png")
        self.plot_samples(measured.sample, path)
        return [path]

    # ---------------------------------------------------------------------------------------------- what is drawn

    def plot_log(self, rows, path):
        """The run's curves as a PNG. rows: the log, a dict a line."""
        raise NotImplementedError

    def plot_samples(self, sample, path):
        """A sheet of examples as a PNG."""
        raise NotImplementedError

    def pictures(self, sample):
        """{title: (N, C, H, W) uint8} for TensorBoard."""
        return {}


def task_names():
    """The names of all tasks, the default first."""
    modules = [module.name for module in pkgutil.iter_modules(__path__)]
    names = [name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "TASK")]
    return sorted(names, key=lambda name: (name != "depixelation", name))


def load_task(name, where="command line"):
    """The Task subclass of this name. Raises UserError."""
    try:
        if not name.isidentifier():
            raise ModuleNotFoundError(name=f"{__name__}.{name}")
        return importlib.import_module(f"{__name__}.{name}").TASK
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != f"{__name__}.{name}":
            raise
    names = task_names()
    near = difflib.get_close_matches(name, names, 1)
    raise UserError(
        f"{where}: there is no task {name!r}; there are {', '.join(names)}" + (f" (nearest: {near[0]})" if near else "")
    )
