"""`Task`: what the training loop and the commands need of an exercise. Each is a file in depixelation/tasks."""

import json
from dataclasses import replace

import torch
from torch.utils.data import Subset, default_collate

from datasets import epochs
from depixelation.engine.models import Model, check_task, load_weights
from depixelation.engine.options import EvaluateOptions
from depixelation.engine.predictor import Predictor
from utils import Config, UserError, digest

MAX_PARAMETERS = 10**9


class Task:
    """One exercise. The defaults here suit most tasks; a subclass overrides what differs."""

    Config = Config  # its keys and their defaults
    EvaluateOptions = EvaluateOptions  # the options of --evaluate
    summary = ""  # a line for --help
    networks = {}  # name: class; the first is the default
    scores = ("score",)  # columns of the log; the first decides which model is the best
    higher_is_better = False
    keeps_last = False  # keep the last averaged weights instead of those with the best score
    decimals = 3  # of the scores, as they are printed
    curves = ()  # columns of the log that --compare draws; none: the training loss and the scores
    also_loads = ()  # other tasks whose models work here, too
    default_views = 1  # predictions to average
    most_views = 8
    next_command = ""  # suggested after training, as typed after python main.py
    preview_images = 0  # for the extra validations of a short run
    shipped = None  # models/NAME.pt, used until a model is trained
    refiner = None  # the shipped model for --realism
    refined_by_flow = False  # whether that may be a flow

    def __init__(self, config):
        self.config = config
        self.training_set = self.validation_set = None
        self.held_out = torch.empty(0, dtype=torch.int64)  # holdout.held_out_digests, if known
        self.content = ""  # a digest of the training images, if known
        self.inherited = []  # models.training_record of other models that this one learns from
        self.sources = {}  # {key: outputs.file_digest} of model files that every training step needs

    # ---------------------------------------------------------------------------------------------- what is trained

    def example_input(self):
        """An input that every network of the task can take, (1, C, H, W) float32; --summary counts its FLOPs."""
        raise NotImplementedError

    def build(self, device, precision, processes):
        """The network to train, on the device, initialised from the global generator."""
        network = self.build_network(self.config.network, self.config.network_options)
        return network.to(device, memory_format=torch.channels_last)

    def build_network(self, name, options):
        """A network in training mode. Options that it cannot be built or run with raise UserError."""
        try:
            with torch.device("meta"):  # takes no memory: options may come from an untrusted file
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
        """Start the network from another model's file, --init. Raises UserError."""
        check_task(self, checkpoint, path)
        load_weights(network, checkpoint, path)

    def begin_step(self, network, progress):
        """Adjust the network in the course of training. progress: Run.progress, 0 to 1."""

    def loss(self, learner, batch):
        """The losses of a batch: training minimises the first; the log holds all.

        learner: a Learner; calling it is the forward pass. batch: as collated, on the device. Returns ({column: mean},
        the number of images or pixels averaged, an int or a tensor).
        """
        raise NotImplementedError

    def train_step(self, learner, batch, rate):
        """One step on a batch at this learning rate. Returns what `loss` does."""
        losses, count = self.loss(learner, batch)
        learner.step(next(iter(losses.values())), count, rate)
        return losses, count

    def learners(self, learner):
        """{name: Learner} of every network in training: the task's own, and any that it trains beside it."""
        return {"network": learner}

    # ---------------------------------------------------------------------------------------------- data

    def prepare(self):
        """Set training_set and validation_set, Datasets with a list `names`."""
        raise NotImplementedError

    def fingerprint(self):
        """A digest that shows whether a resumed run trains on the same images."""
        return digest([self.training_set.names, self.content])

    def is_trained_on(self, fingerprint):
        """Whether a run with this fingerprint was trained on the same images."""
        return fingerprint in (self.fingerprint(), digest(self.training_set.names))  # earlier versions used names only

    def count_images(self):
        """How many different images there are to train on."""
        data = self.training_set
        return min(len(getattr(data, "indices", data)), self.config.max_images or len(data))

    def batches(self, network, start):
        """Yield lists of keys for training_set, one per batch, from step `start` on, without end.

        If the training set has a method `batches`, it decides; else keys are (epoch, index).
        """
        config, count = self.config, len(self.training_set)
        if hasattr(self.training_set, "batches"):
            yield from self.training_set.batches(config.batch_size, start, getattr(network, "window_side", None))
        for epoch, step, rng in epochs(count, config.seed, config.batch_size, start):
            order = rng.permutation(count)
            for first in range(step * config.batch_size, count, config.batch_size):
                yield [(epoch, int(i)) for i in order[first : first + config.batch_size]]

    collate = staticmethod(default_collate)

    # ---------------------------------------------------------------------------------------------- what is measured

    def measure(self, predictors, dataset, keep_outputs=False):
        """The figures of several Predictors on a dataset: a measuring.Measurement."""
        raise NotImplementedError

    def views(self, network, count, trained_with):
        """The first `count` of a network's views, over which it averages its predictions."""
        return network.VIEWS[:count] if hasattr(network, "VIEWS") else ()

    def predictor(self, network, trained_with, precision, options):
        """The Predictor of a trained network in eval mode. options: ModelOptions."""
        views = self.views(network, options.views or self.default_views, trained_with)
        return Predictor(network, next(network.parameters()).device, precision, views)

    def baselines(self):
        """{name: function of tensors} of methods without training, which --evaluate compares."""
        return {}

    def validate(self, predictor, images=None):
        """Measure validation_set, or its first images.

        Returns (figures for the log, the same of the first preview_images alone, sample for `sample_sheet`).
        """
        measured = self.measure([predictor], self.validated(images))
        figures, first = (
            {name: float(errors[0][:count].mean()) for name, errors in measured.figures.items()}
            for count in (None, self.preview_images or None)
        )
        return figures, first, measured.sample

    def validated(self, images):
        """The validation set, or its first images."""
        data = self.validation_set
        return Subset(data, range(min(images, len(data)))) if images else data

    def reference(self, row):
        """Text beside the score in progress lines: a baseline's score on the same images, say."""
        return ""

    # ---------------------------------------------------------------------------------------------- --evaluate

    def inherited_keys(self, options):
        """The data keys that --evaluate takes from the first model unless they were named."""
        return ()

    def as_measured(self, models, options):
        """The task with the data keys of the first trained Model, except those that were named."""
        first = next((model.trained_with for model in models if model.trained_with), None)
        keys = self.inherited_keys(options) if first else ()
        values = {name: getattr(first, name) for name in keys if getattr(options, name) is None}
        return type(self)(replace(self.config, **values))

    def evaluation_set(self, models, options):
        """(dataset with truth, its description) for --evaluate. models: the Models to compare on it."""
        raise NotImplementedError

    def compared(self, models, device, precision):
        """The Models of a comparison: those asked for, and the baselines that are not yet among them."""
        names = [model.name for model in models]
        baselines = self.baselines().items()
        return models + [Model(n, Predictor(f, device, precision)) for n, f in baselines if n not in names]

    def columns(self, models, measured):
        """{title: [text for each model]}: further columns of --evaluate's table."""
        return {}

    def report(self, models, measured):
        """Print further results of --evaluate. Returns {suffix: function of a path that draws a figure}."""
        return {}

    # ---------------------------------------------------------------------------------------------- what is drawn

    def log_panels(self, rows):
        """The run's curves: a list of figures.curves.Panel. rows: the log, a dict a line."""
        raise NotImplementedError

    def sample_sheet(self, sample):
        """A sheet of examples: the rows of figures.sheets.plot_sheet."""
        raise NotImplementedError

    def pictures(self, sample):
        """{title: (N, C, H, W) uint8} for TensorBoard."""
        return {}
