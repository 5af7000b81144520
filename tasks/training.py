"""What the loop in main.py keeps of a training: its parts, what it has done so far, and its state on disk.

Nothing here knows a task or its data.
"""

import copy
import dataclasses
import itertools
import math
import time

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from processes import rng_state, set_rng_state
from symmetry import EquivariantConv2d
from utils import UserError, save_checkpoint

EMA_EVERY = 4  # steps between updates of the moving average: each reads and writes all weights
CHECK_EVERY = 20  # steps between looks at the loss, for which a GPU must wait
SAVE_EVERY = 120  # seconds of training that an interruption of any kind costs at most


class Part:
    """One network in training, its optimizers, and the moving average of its weights, which is what is kept."""

    def __init__(self, network, config, precision, model):
        """network: on its device. precision: torch.dtype of its convolutions and Muon's iteration. model: the network
        as forward passes of training call it, compiled or shared among processes, say."""
        self.network, self.precision, self.model = network, precision, model
        self.gradient_clip, self.steps = config.gradient_clip, 0
        self.kept = copy.deepcopy(network).eval()  # holds what is validated and written to models/NAME.pt
        self.average = AveragedModel(network, multi_avg_fn=ema_update(config.ema_decay), use_buffers=True)
        self.parameters = list(network.parameters())
        self.optimizers = build_optimizers(config.optimizer, network, config.weight_decay, precision)

    def autocast(self, inputs):
        """The context in which convolutions of these inputs have the run's precision."""
        return torch.autocast(inputs.device.type, self.precision, enabled=self.precision != torch.float32)

    def __call__(self, inputs, **options):
        """The network's output; what follows is in float32 again."""
        with self.autocast(inputs):
            return self.model(inputs, **options)

    def frozen(self, inputs):
        """The same where a loss of another part needs it: no gradient reaches the weights."""
        self.network.requires_grad_(False)
        try:
            with self.autocast(inputs):
                return self.network(inputs)
        finally:
            self.network.requires_grad_(True)

    def step(self, loss, learning_rate):
        """Change the weights so that the loss falls."""
        for group in itertools.chain(*(optimizer.param_groups for optimizer in self.optimizers)):
            group["lr"] = learning_rate * group["scale"]
        self.network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        if self.steps % EMA_EVERY == 0 or self.steps < EMA_EVERY:
            self.average.update_parameters(self.network)

    def kept_weights(self):
        """The averaged weights in half precision, as they are stored; .kept has them too then."""
        weights = {
            name: t.half() if t.is_floating_point() else t for name, t in self.average.module.state_dict().items()
        }
        self.kept.load_state_dict(weights)
        return weights

    def state_dict(self):
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        average = self.average.state_dict()
        return {"weights": self.network.state_dict(), "average": average, "optimizers": optimizers, "steps": self.steps}

    def load_state_dict(self, state):
        self.network.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps = state["steps"]


def ema_update(decay):
    """The update that AveragedModel applies every EMA_EVERY steps; its memory is short while the weights move fast."""

    def update(averages, parameters, updates):
        steps = 1 + EMA_EVERY * int(updates)  # about: the first steps have an update each
        if averages[0].is_floating_point():  # the tensors of one call have one dtype
            torch._foreach_lerp_(averages, parameters, 1 - min(decay, steps / (9 + steps)) ** EMA_EVERY)
        else:
            torch._foreach_copy_(averages, parameters)

    return update


@dataclasses.dataclass
class Run:
    """What a run has done so far, and what follows from it."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0  # of training, validation included
    sums: dict = dataclasses.field(default_factory=dict)  # since the last validation: {column: (sum, count)}
    rows: list = dataclasses.field(default_factory=list)  # the log
    best: float | None = None
    stale: int = 0  # validations since the best score
    finished: bool = False
    inherited: list = dataclasses.field(default_factory=list)  # training_record of models it started or learns from

    def begin(self, config, steps_per_epoch):
        """Start the clock."""
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.started, self.saved = time.monotonic() - self.seconds, self.seconds
        self.epoch_ended = self.validation_due = self.save_due = False
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
        """That of the next step, at its middle."""
        return learning_rate(self.config, self.progress(self.step + 0.5))

    def add(self, losses, count, processes):
        """Add to the sums since the last validation; they stay on the device."""
        total = processes.total(count)
        for column, loss in losses.items():
            old_sum, old_count = self.sums.get(column, (0.0, 0.0))
            self.sums[column] = (old_sum + processes.total(loss.detach() * count), old_count + total)

    def means(self):
        """{column: mean since the last validation}"""
        return {column: float(total) / float(count) for column, (total, count) in self.sums.items()}

    def count_step(self, samples, stop, processes, device):
        """After a step: what all processes must agree on, how much is done, the time, whether to stop (a signal)."""
        sizes, seconds, stops = processes.gather([samples, time.monotonic() - self.started, stop], device).T.tolist()
        self.step += 1
        self.samples += int(sum(sizes))
        self.seconds, self.stopped_by = seconds[0], int(max(stops))
        ends, every = self.progress(self.step) >= 1, self.steps_per_epoch * self.config.validate_every
        self.epoch_ended = self.step % self.steps_per_epoch == 0 or ends
        self.validation_due = self.step % every == 0 or ends
        self.save_due = self.validation_due or bool(self.stopped_by) or self.seconds - self.saved > SAVE_EVERY
        if self.step % CHECK_EVERY == 0 or self.save_due:
            self.check(next(iter(self.means().values())))

    def check(self, value):
        """Stop where a loss or weight is not finite. The last saved model stays as it is."""
        if not math.isfinite(value):
            raise UserError(
                f"learning_rate: the loss became {value} in epoch {max(1, math.ceil(self.epoch))}, at or before step "
                f"{self.step}; try a smaller one than {self.config.learning_rate:g}, or --precision float32, under "
                f"another --name. The last saved model is kept"
            )

    def check_weights(self, weights):
        """The losses until now came before the last step; the weights did not."""
        self.check(torch.stack([t.abs().max().float() for t in weights.values()]).max().item())  # NaN if there is one

    def end_validation(self, processes):
        """Begin new sums; decide whether the run is finished."""
        self.sums = {}
        self.seconds, self.stale = processes.agree((time.monotonic() - self.started, self.stale))
        self.finished = self.is_finished()

    def is_finished(self):
        """Whether its epochs or minutes are used up, or its patience."""
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
        if run.step % CHECK_EVERY == 0 or run.save_due:
            left = tqdm.format_interval(run.seconds / run.progress(run.step) - run.seconds)
            self.bar.set_postfix_str(f"loss {next(iter(run.means().values())):.4g}, {left} left in all")
        if run.epoch_ended or run.stopped_by:
            self.__exit__()

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()
        self.bar = None


# ------------------------------------------------------------------------------------------------ states of runs


def save_run(config, task, run, parts, precision):
    """models/NAME.last.pt: all that --resume needs."""
    for part in parts.values():
        run.check_weights(part.network.state_dict())
    state = {
        "config": config.of_run(),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "run": run.state_dict(),
        "rng": rng_state(),
        "precision": str(precision)[6:],
        "images": task.fingerprint(),
        "sources": task.sources,
    }
    save_checkpoint(state, config.file("models", ".last.pt"))


def restore_run(config, task, parts, state):
    """Put a state into the parts and the global generators; returns its Run."""
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        run = Run(**state["run"])
        before = dict(state.get("sources", task.sources))  # earlier versions did not keep them
        fits = isinstance(run.step, int) and isinstance(run.sums, dict) and isinstance(run.rows, list)
        if not fits or state["run"].keys() != {field.name for field in dataclasses.fields(Run)}:
            raise ValueError("what it counts makes no sense")
        set_rng_state(state["rng"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        path, reason = config.file("models", ".last.pt"), str(error).partition("\n")[0]
        raise UserError(f"{path}: holds no state of this program ({reason}); start a new run with --init") from None
    if state["images"] != task.fingerprint():
        raise UserError(f"images: {config.images} no longer holds the same photos; start a new run with --init")
    for name in before.keys() | task.sources.keys():
        if before.get(name) != task.sources.get(name):
            path = getattr(config, name, None)
            raise UserError(f"{name}: {path} is not what the run began with; name that, or start a new run with --init")
    return run


# ------------------------------------------------------------------------------------------------ optimizers


class FilterMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for convolution filters: each is a matrix of outputs x (height * width * inputs).

    Its updates have the size of AdamW's (Liu et al. 2025), times the scale of its parameter group. PyTorch's step
    always orthogonalizes in bfloat16, which takes 17 times as long as float32 where a CPU has no instructions for it.
    """

    def __init__(self, filters, weight_decay, precision):
        """filters: pairs of a parameter and its EquivariantConv2d; or None where it is the filters, (out, in, h, w) in
        channels_last format, of which the optimizer has a view. precision: torch.dtype of the orthogonalization."""
        self.filters, self.precision = list(filters), precision
        matrices = [(layer.matrix if layer else _matrix)(weight.detach()) for weight, layer in self.filters]
        # Of a tied filter it is only what its momentum belongs to, in states of earlier versions too.
        scale = 3.0  # the best of 1, 3 and 6 in runs of three minutes
        group = {"params": list(map(nn.Parameter, matrices)), "scale": scale}
        super().__init__([group], weight_decay=weight_decay)

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for (weight, layer), matrix in zip(self.filters, group["params"]):
            gradient = weight.grad if layer else weight.grad.contiguous(memory_format=torch.channels_last)
            gradient = (layer.matrix if layer else _matrix)(gradient)
            momentum = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(gradient))
            momentum.lerp_(gradient, 1 - group["momentum"])
            update = orthogonalized(gradient.lerp(momentum, group["momentum"]).to(self.precision), group).float()
            weights, update = (weight, layer.untied(update)) if layer else (matrix, update)
            weights.mul_(1 - group["lr"] * group["weight_decay"])
            weights.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))  # AdamW's size (Liu et al.)


def orthogonalized(matrix, group):
    """Roughly the nearest matrix with orthonormal rows, or columns where these are fewer: Muon's Newton-Schulz
    iteration. group: the optimizer's parameter group, which has the coefficients."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalized(matrix.T, group).T
    x = matrix / matrix.norm().clamp(min=group["eps"])
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _matrix(filters):
    return filters.permute(0, 2, 3, 1).view(len(filters), -1)


def build_optimizers(kind, network, weight_decay, precision):
    """The optimizers that together train the network. muon: for filters between at least 32 channels; else AdamW.

    precision: torch.dtype that Muon orthogonalizes in. adam is PyTorch's with its own defaults, as exercise sheets use
    it: no weight decay. The learning rate of each parameter group is to be multiplied with its "scale".
    """
    tied = {id(layer.weight): layer for layer in network.modules() if isinstance(layer, EquivariantConv2d)}
    filters = [(p, tied.get(id(p))) for p in network.parameters() if kind == "muon"]
    filters = [(p, layer) for p, layer in filters if _is_wide(layer.filters() if layer else p)]
    chosen = {id(p) for p, _ in filters}
    group = {"params": [p for p in network.parameters() if id(p) not in chosen], "scale": 1.0}
    if kind == "adam":
        return [torch.optim.Adam([group], fused=True)]
    adamw = torch.optim.AdamW([group], betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    return [adamw, FilterMuon(filters, weight_decay, precision)] if filters else [adamw]


def _is_wide(filters):
    return filters.ndim == 4 and min(filters.shape[:2]) >= 32
