"""The progress of a training run, what is due next, and the run's state on disk.

Nothing here knows a task or its data.
"""

import dataclasses
import math
import time

import torch
from tqdm import tqdm

from depixelation.engine.processes import rng_state, set_rng_state
from utils import UserError, save_checkpoint

CHECK_EVERY = 20  # steps between checks of the loss, each of which makes a GPU wait
SHORT = 3  # epochs; a shorter run is also validated on a few images, about ten times,
PREVIEWS = 0.04  # in at most this share of its time
SAVE_EVERY = 120  # seconds of training that an interruption can cost at most


@dataclasses.dataclass
class Run:
    """The progress of a run, and what is due next."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0  # of training, validation included
    sums: dict = dataclasses.field(default_factory=dict)  # since the last validation: {column: (sum, count)}
    rows: list = dataclasses.field(default_factory=list)  # the log
    best: float | None = None
    stale: int = 0  # validations since the best score
    finished: bool = False
    inherited: list = dataclasses.field(default_factory=list)  # training_record of the models it builds on

    def begin(self, config, steps_per_epoch):
        """Start the clock."""
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.started, self.saved = time.monotonic() - self.seconds, self.seconds
        self.epoch_ended = self.validation_due = self.preview_due = self.save_due = False
        self.previews = []  # rows of validations on few images, between those of the log
        self.preview_seconds = 0.0
        self.stopped_by = 0  # the signal
        self.finished = self.is_finished()

    @property
    def epoch(self):
        """Passes over the training images so far."""
        return self.step / self.steps_per_epoch

    def progress(self, step):
        """The share of the training that is done, 0 to 1: of its epochs or its minutes, whichever comes first."""
        config = self.config
        by_epochs = step / (config.epochs * self.steps_per_epoch) if config.epochs else 0
        by_time = self.seconds / (60 * config.max_minutes) if config.max_minutes else 0
        return min(1.0, max(by_epochs, by_time))

    def learning_rate(self):
        """The learning rate of the next step, at its middle."""
        return learning_rate(self.config, self.progress(self.step + 0.5))

    def add(self, losses, count, processes, device):
        """Add to the sums since the last validation; they stay on the device."""
        count = torch.as_tensor(count, dtype=torch.float64, device=device)
        total = processes.total(count)
        for column, loss in losses.items():
            old_sum, old_count = self.sums.get(column, (0.0, 0.0))
            self.sums[column] = (old_sum + processes.total(loss.detach() * count), old_count + total)

    def means(self):
        """{column: mean since the last validation}"""
        return {column: float(total) / float(count) for column, (total, count) in self.sums.items()}

    def count_step(self, samples, stop, processes, device):
        """Count a step, and agree with all processes on samples, time and whether to stop. stop: a signal, or 0."""
        sizes, seconds, stops = processes.gather([samples, time.monotonic() - self.started, stop], device).T.tolist()
        before = self.progress(self.step)
        self.step += 1
        self.samples += int(sum(sizes))
        self.seconds, self.stopped_by = seconds[0], int(max(stops))
        ends, every = self.progress(self.step) >= 1, self.steps_per_epoch * self.config.validate_every
        self.epoch_ended = self.step % self.steps_per_epoch == 0 or ends
        self.validation_due = self.step % every == 0 or ends
        self.preview_due = not self.validation_due and self._tenth(before) < self._tenth(self.progress(self.step))
        self.preview_due &= self.preview_seconds <= PREVIEWS * self.seconds
        self.save_due = self.validation_due or bool(self.stopped_by) or self.seconds - self.saved > SAVE_EVERY
        if self.step % CHECK_EVERY == 0 or self.save_due:
            self.check(next(iter(self.means().values())))

    def _tenth(self, progress):
        """The tenths done of a run that ends within SHORT epochs; of any other, 0."""
        return int(10 * progress) if self.epoch < SHORT * progress else 0

    def check(self, value):
        """Raise UserError if a loss or weight is not finite. The last saved model stays as it is."""
        if not math.isfinite(value):
            raise UserError(
                f"learning_rate: the loss became {value} in epoch {max(1, math.ceil(self.epoch))}, at or before step "
                f"{self.step}; try a smaller one than {self.config.learning_rate:g}, or --precision float32, under "
                f"another --name. The last saved model is kept"
            )

    def check_weights(self, weights):
        """Check the weights: the last step may have spoiled them after the last loss was computed."""
        self.check(torch.stack([t.abs().max().float() for t in weights.values()]).max().item())  # NaN if there is one

    def end_validation(self, processes):
        """Start new sums, and decide whether the run is finished."""
        self.sums = {}
        self.seconds, self.stale = processes.agree((time.monotonic() - self.started, self.stale))
        self.finished = self.is_finished()

    def is_finished(self):
        """Whether the run's epochs, minutes or patience are used up."""
        patience = self.config.patience
        return self.progress(self.step) >= 1 or bool(patience and self.stale >= patience)

    def state_dict(self):
        state = {name: getattr(self, name) for name in (field.name for field in dataclasses.fields(self))}
        sums = {column: (float(total), float(count)) for column, (total, count) in self.sums.items()}
        return {**state, "sums": sums}


def learning_rate(config, progress):
    """Linear warm-up, then constant, then a linear decay to 0: a function of the progress alone, 0 to 1."""
    rise = min(1.0, progress / config.warmup) if config.warmup else 1.0
    fall = min(1.0, (1 - progress) / config.decay) if config.decay else 1.0
    return config.learning_rate * rise * fall


class EpochBar:
    """A progress bar for each epoch of a run."""

    def __init__(self, images):
        self.images, self.bar = images, None

    def __enter__(self):
        return self

    def update(self, run):
        """Show the run after a step."""
        epoch = (run.step - 1) // run.steps_per_epoch
        before, after = (
            min(self.images, (step - epoch * run.steps_per_epoch) * run.config.batch_size)
            for step in (run.step - 1, run.step)
        )
        if self.bar is None:
            title = f"epoch {epoch + 1}" + (f"/{run.config.epochs}" if run.config.epochs else "")
            options = {"unit": " images", "smoothing": 0.1, "mininterval": 0.5, "dynamic_ncols": True}
            self.bar = tqdm(total=self.images, initial=before, desc=title, **options)
        self.bar.update(after - before)
        if run.step % CHECK_EVERY in (0, 1) or run.save_due:
            left = tqdm.format_interval(run.seconds / run.progress(run.step) - run.seconds)
            self.bar.set_postfix_str(f"loss {next(iter(run.means().values())):.4g}, {left} left in all")
        if run.epoch_ended or run.stopped_by:
            self.__exit__()

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()
        self.bar = None


# ------------------------------------------------------------------------------------------------ states of runs


def save_run(config, task, run, learner):
    """Write all that --resume needs to models/NAME.last.pt. The first process writes; the others send RNG states."""
    learners, (rng, *others) = task.learners(learner), learner.processes.collect(rng_state())
    if learner.processes.rank:
        return
    for each in learners.values():
        run.check_weights(each.network.state_dict())
    state = {
        "config": dataclasses.asdict(config),
        "parts": {name: each.state_dict() for name, each in learners.items()},
        "run": run.state_dict(),
        "rng": rng,
        "other_rngs": others,
        "precision": str(learner.precision)[6:],
        "images": task.fingerprint(),
        "sources": task.sources,
    }
    save_checkpoint(state, config.file("models", ".last.pt"))


def restore_run(config, task, learner, state):
    """Load a state into the learners and the global generators. Returns its Run."""
    try:
        for name, each in task.learners(learner).items():
            each.load_state_dict(state["parts"][name])
        run = Run(**state["run"])
        before = dict(state.get("sources", task.sources))  # earlier versions did not save them
        fits = isinstance(run.step, int) and isinstance(run.sums, dict) and isinstance(run.rows, list)
        if not fits or state["run"].keys() != {field.name for field in dataclasses.fields(Run)}:
            raise ValueError("its counts make no sense")
        rngs, rank = [state["rng"], *state.get("other_rngs", [])], learner.processes.rank
        set_rng_state(rngs[rank if rank < len(rngs) else 0])  # earlier versions saved only the first process's
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        path, reason = config.file("models", ".last.pt"), str(error).partition("\n")[0]
        raise UserError(f"{path}: holds no state of this program ({reason}); start a new run with --init") from None
    if not task.is_trained_on(state["images"]):
        raise UserError(f"images: {config.images} no longer holds the same photos; start a new run with --init")
    for name in before.keys() | task.sources.keys():
        if before.get(name) != task.sources.get(name):
            path = getattr(config, name, None)
            raise UserError(f"{name}: {path} is not what the run began with; name that, or start a new run with --init")
    return run
