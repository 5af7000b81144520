"""Train a network that restores images, and use it: by default the course challenge "Image Depixelation".

python main.py            trains as config.json says
python main.py --predict  restores the test pickle with the trained model
python main.py --help     tells the rest

One batch from file to loss: `train` below asks the task (tasks/) for batches and for the loss of each of its parts.
"""

import copy
import dataclasses
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from processes import (
    Interrupts,
    PeerLost,
    Processes,
    choose_device,
    choose_precision,
    keep_freed_memory,
    quiet,
    rng_state,
    seed_everything,
    set_rng_state,
    start_worker,
)
from tasks import Action, load_task, task_names
from tasks.challenge import zip_project
from tasks.evaluation import compare, evaluate, load_weights, summarize, write_table
from utils import (
    ROOT,
    Parser,
    UserError,
    atomic_write,
    build_optimizers,
    check_value,
    config_from_dict,
    load_checkpoint,
    locked,
    parse_command_line,
    read_config_file,
    save_checkpoint,
    show,
)

DESCRIPTION = """\
{summary}

Without an action it trains: it reads the configuration, then the options, prepares the images (once), trains, and after
each epoch writes, below output_dir,
  models/NAME.pt            the best model so far (EMA weights and config)
  models/NAME.json          its config, for --config
  models/NAME.last.pt       the full state of the run, for --resume
  losses/NAME.csv, .png     the log, a line an epoch, and its curve
  losses/NAME_samples.png   validation images: truth, input, prediction, error

tasks (python main.py --task NAME --help shows the commands and keys of each):
{tasks}"""

EPILOG = """\
examples:
  python main.py --max_minutes 5                                        a first model, without any data
  python main.py --images training.zip --max_minutes 30 --name photos   train on the course's photos
  python main.py --resume --name photos                                 go on after an interruption
  python main.py --predict --name photos --test_set test_set.pkl        write the challenge file
  python main.py --evaluate models/photos.pt models/small.pt --images training.zip   compare models
  python main.py --images training.zip --init models/photos.pt --name more   start from a model's weights

exit status: 0 done; 2 a mistake in the options or files (one line says which); 130 interrupted, the state is saved"""

EMA_EVERY = 4  # steps between updates of the moving average: each reads and writes all weights
CHECK_EVERY = 20  # steps between looks at the loss, for which a GPU must wait
SAVE_EVERY = 120  # seconds of training that an interruption of any kind costs at most


# ------------------------------------------------------------------------------------------------ training


class Part:
    """One network in training, its optimizers, and the moving average of its weights, which is what is kept."""

    def __init__(self, network, config, precision, model):
        """network: on its device. precision: torch.dtype of its convolutions. model: the network as forward passes of
        training call it, compiled or shared among processes, say."""
        self.network, self.precision, self.model = network, precision, model
        self.gradient_clip, self.steps = config.gradient_clip, 0
        self.kept = copy.deepcopy(network).eval()  # holds what is validated and written to models/NAME.pt
        self.average = AveragedModel(network, multi_avg_fn=ema_update(config.ema_decay), use_buffers=True)
        self.parameters = list(network.parameters())
        self.optimizers = build_optimizers(config.optimizer, self.parameters, config.weight_decay)

    def __call__(self, inputs, **options):
        """The network's output; what follows is in float32 again."""
        with torch.autocast(inputs.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.model(inputs, **options)

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
    sums: dict = dataclasses.field(default_factory=dict)  # since the epoch began: {column: (sum, count)}
    rows: list = dataclasses.field(default_factory=list)  # the log
    best: float | None = None
    stale: int = 0  # epochs since the best score
    finished: bool = False

    def begin(self, config, steps_per_epoch):
        """Start the clock."""
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.started, self.saved = time.monotonic() - self.seconds, self.seconds
        self.epoch_ended = self.save_due = False
        self.stopped_by = 0  # the signal

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
        """Add to the epoch's sums; they stay on the device."""
        total = processes.total(count)
        for column, loss in losses.items():
            old_sum, old_count = self.sums.get(column, (0.0, 0.0))
            self.sums[column] = (old_sum + processes.total(loss.detach() * count), old_count + total)

    def means(self):
        """{column: mean since the epoch began}"""
        return {column: float(total) / float(count) for column, (total, count) in self.sums.items()}

    def count_step(self, samples, stop, processes, device):
        """After a step: what all processes must agree on, how much is done, the time, whether to stop (a signal)."""
        sizes, seconds, stops = processes.gather([samples, time.monotonic() - self.started, stop], device).T.tolist()
        self.step += 1
        self.samples += int(sum(sizes))
        self.seconds, self.stopped_by = seconds[0], int(max(stops))
        self.epoch_ended = self.step % self.steps_per_epoch == 0 or self.progress(self.step) >= 1
        self.save_due = self.epoch_ended or bool(self.stopped_by) or self.seconds - self.saved > SAVE_EVERY
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

    def end_epoch(self, processes):
        """Begin the next epoch's sums; decide whether the run is finished."""
        self.sums = {}
        self.seconds, self.stale = processes.agree((time.monotonic() - self.started, self.stale))
        patience = self.config.patience
        self.finished = self.progress(self.step) >= 1 or bool(patience and self.stale >= patience)

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


def train(config, task, processes, state=None):
    """Train the task's networks; state: of an interrupted run, from models/NAME.last.pt. Returns the exit status."""
    check_start(config, processes, state)
    device = processes.join(choose_device(config.device))
    precision = processes.agree(choose_precision(config.precision, device))
    seed_everything(config.seed)
    networks = {name: net.to(device, memory_format=torch.channels_last) for name, net in task.build_parts().items()}
    network = networks[task.parts[0]]
    if not any(True for _ in network.parameters()):
        raise UserError(f"network: {config.network} has no parameters to train; choose another")
    if config.init and not state:
        load_weights(network, load_checkpoint(config.init, "name a models/NAME.pt"), config.init)
    with processes.first_alone():
        task.prepare()
    parts = {}
    for name, net in networks.items():
        model = processes.wrap(torch.compile(net) if config.compile else net, device)
        parts[name] = Part(net, config, precision, model)
    run = restore_run(config, task, parts, state) if state else Run()
    run.begin(config, math.ceil(len(task.training_set) / config.batch_size))
    if state and run.progress(run.step) >= 1:
        raise UserError(f"name: run {config.name!r} is finished; to go on, give it more --epochs or --max_minutes")
    batches = load_batches(config, task, network, run.step, processes, device)
    board = open_tensorboard(config, run.step) if config.tensorboard and not processes.rank else None
    if not state and not processes.rank:
        save_run(config, task, run, parts, precision)  # finds out now whether that works
    print(
        f"{config.network}: {sum(p.numel() for p in network.parameters()):,} parameters; {len(task.training_set):,} "
        f"images to train on, {len(task.validation_set):,} held out; {device.type}, {str(precision)[6:]}"
        + (f"; batches of {config.batch_size}, shared by {processes.count} processes" if processes.count > 1 else "")
    )
    with Interrupts(loud=not processes.rank) as interrupts, EpochBar(len(task.training_set)) as bar:
        for batch in batches:
            batch = [tensor.to(device, non_blocking=True) for tensor in batch]
            for name, part in parts.items():
                losses, count = task.loss(name, parts, batch)
                share = processes.count * count / processes.total(count)  # shares of a batch may differ in size
                part.step(next(iter(losses.values())) * share, run.learning_rate())
                run.add(losses, count, processes)
            run.count_step(len(batch[0]), interrupts.received, processes, device)
            bar.update(run)
            if run.epoch_ended:
                if not processes.rank:
                    finish_epoch(config, task, run, parts, device, precision, board)
                run.end_epoch(processes)
            if run.save_due:
                run.saved = run.seconds
                if not processes.rank:
                    save_run(config, task, run, parts, precision)
            if run.finished or run.stopped_by:
                break
    if processes.rank:
        return 0
    return tell_end(config, task, run, processes)


def check_start(config, processes, state):
    """Refuse at once what cannot end well: no end, no compiler, the replacement of an interrupted run."""
    if config.epochs is None and config.max_minutes is None:
        raise UserError("epochs: null, as is max_minutes; give one of them an end")
    compilers = ("c++", "g++", "clang++", "cl")
    if config.compile and choose_device(config.device).type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError("compile: torch.compile needs a C++ compiler on a CPU, and there is none; leave --compile out")
    if state or processes.rank:
        return
    path = config.file("models", ".last.pt")
    if os.path.exists(path):
        run = load_checkpoint(path, "delete it, or choose another --name", part="config").get("run")
        if isinstance(run, dict) and run.get("step") and not run.get("finished", True):
            raise UserError(
                f"{path}: the run {config.name!r} was interrupted; go on with --resume --name {config.name}, "
                f"choose another --name, or delete this file"
            )
    if os.path.exists(config.file("models", ".pt")):
        print(f"{show(config.file('models', '.pt'))} will be replaced after the first epoch; to keep it, use --name")


def load_batches(config, task, network, step, processes, device):
    """An iterator over this process's share of the task's batches, collated, from this step on, without end."""
    workers = config.workers if config.workers is not None else (min(8, os.cpu_count()) if device.type == "cuda" else 0)
    loader = DataLoader(
        task.training_set,
        batch_sampler=processes.shares(task.batches(network, step)),
        collate_fn=task.collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # the global one is not to be drawn from
    )
    return iter(loader)


def finish_epoch(config, task, run, parts, device, precision, board):
    """Validate the averaged weights as they are kept; write the log, the pictures and the best model."""
    part = parts[task.parts[0]]
    weights = part.kept_weights()
    run.check_weights(weights)
    figures, sample = task.validate(part.kept, device, precision)
    row = {
        "epoch": round(run.epoch, 3),
        "step": run.step,
        "samples": run.samples,
        "minutes": round(run.seconds / 60, 3),
        **run.means(),
        **figures,
    }
    run.rows.append(row)
    score = figures[task.scores[0]]
    better = run.best is None or (score > run.best if task.higher_is_better else score < run.best)
    run.best, run.stale = (score, 0) if better else (run.best, run.stale + 1)
    if better:
        save_checkpoint({"config": config.without_paths(), "weights": weights, **row}, config.file("models", ".pt"))
        with atomic_write(config.file("models", ".json")) as file:
            file.write((json.dumps(config.without_paths(), indent=2) + "\n").encode())
        task.plot_samples(sample, config.file("losses", "_samples.png"))
    try:
        write_table(run.rows, config.file("losses", ".csv"))
        task.plot_log(run.rows, config.file("losses", ".png"))
    except OSError as error:  # open in another program, say; that stops no training
        print(f"warning: {error.filename or config.file('losses', '.csv')}: {error.strerror or error}", file=sys.stderr)
    reference = task.reference(row)
    print(
        f"epoch {run.epoch:g}: training loss {next(iter(run.means().values())):.3f}, validation {task.scores[0]} "
        f"{score:.3f}{' (best)' if better else ''}{', ' * bool(reference)}{reference}, {row['minutes']:.1f} min"
    )
    if board:
        for name in list(row)[4:]:
            board.add_scalar(name, row[name], row["step"])
        for title, images in task.pictures(sample).items():
            board.add_images(title, images, row["step"])
        board.flush()


def tell_end(config, task, run, processes):
    """Say how the run ended and what to do next. Returns the exit status."""
    if run.stopped_by and not run.finished:
        command = f"torchrun --nproc_per_node {processes.count}" if processes.count > 1 else "python"
        options = f" --task {config.task}" if config.task != "depixelation" else ""
        options += f" --output_dir {shlex.quote(config.output_dir)}" if config.output_dir != ROOT else ""
        print(
            f"Stopped at epoch {run.epoch:.2f}; the state is saved in {show(config.file('models', '.last.pt'))}. "
            f"Go on with: {command} main.py --resume --name {shlex.quote(config.name)}{options}"
        )
        return 128 + run.stopped_by
    score = task.scores[0]
    best = (max if task.higher_is_better else min)(run.rows, key=lambda row: row[score])
    reference = task.reference(best)
    print(
        f"Done: best {score} {best[score]:.3f} at epoch {best['epoch']:g}{' (' * bool(reference)}{reference}"
        f"{')' * bool(reference)} on {len(task.validation_set):,} held-out images, after {run.seconds / 60:.1f} "
        f"minutes of training.\nModel: {show(config.file('models', '.pt'))}; curve and samples: "
        f"{show(config.file('losses', '.png'))}, {show(config.file('losses', '_samples.png'))}"
    )
    return 0


def open_tensorboard(config, step):
    """A writer to losses/NAME_tensorboard; what an interrupted run wrote there after this step is hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard: not installed; pip install tensorboard, or leave --tensorboard out") from None
    return SummaryWriter(config.file("losses", "_tensorboard"), purge_step=step + 1)


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
    }
    save_checkpoint(state, config.file("models", ".last.pt"))


def restore_run(config, task, parts, state):
    """Put a state into the parts and the global generators; returns its Run."""
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        run = Run(**state["run"])
        fits = isinstance(run.step, int) and isinstance(run.sums, dict) and isinstance(run.rows, list)
        if not fits or state["run"].keys() != {field.name for field in dataclasses.fields(Run)}:
            raise ValueError("what it counts makes no sense")
        set_rng_state(state["rng"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        path, reason = config.file("models", ".last.pt"), str(error).partition("\n")[0]
        raise UserError(f"{path}: holds no state of this program ({reason}); start a new run with --init") from None
    if state["images"] != task.fingerprint():
        raise UserError(f"images: {config.images} no longer holds the same photos; start a new run with --init")
    return run


def resume(task, given, processes):
    """Go on with the run config.name as its own config says; options given on the command line override it."""
    config = task.config
    path = config.file("models", ".last.pt")
    advice = f"there is no run {config.name!r} to resume; start one without --resume"
    state = load_checkpoint(path, advice, part="parts")
    if not {"run", "rng", "precision", "images"} <= state.keys():
        raise UserError(f"{path}: holds no state to resume from; start a new run without --resume")
    made_for = state["config"].get("task")
    if made_for != config.task:
        raise UserError(f"{path}: is a run of --task {made_for}, not of {config.task}")
    saved = config_from_dict(type(config), state["config"], path)
    check_value(type(config), "precision", state["precision"], path)
    for name in sorted(given):
        limits = config.limits(name)
        changes = getattr(config, name) != getattr(saved, name)
        if changes and not limits.get("may_change") and not limits.get("command"):
            raise UserError(
                f"command line: {name} cannot change when a run is resumed (it was {getattr(saved, name)!r}); "
                f"leave it out, or start a new run with --init"
            )
        setattr(saved, name, getattr(config, name))
    saved.output_dir = config.output_dir
    if "precision" not in given and "device" not in given:
        saved.precision = state["precision"]  # what auto measured then
    return train(saved, type(task)(saved), processes, state)


# ------------------------------------------------------------------------------------------------ command line


def read_command_line(arguments):
    """(action, operands, task, given): as parse_command_line, with the Task, which holds the configuration."""
    parser = Parser(add_help=False)
    parser.add_argument("--task")
    parser.add_argument("--config")
    first = parser.parse_known_args(arguments)[0]
    path, values = first.config, None
    if path is None and first.task in (None, "depixelation"):
        path = os.path.join(ROOT, "config.json")  # of depixelation alone
    if path is not None:
        values = read_config_file(path)
    name = first.task or str((values or {}).get("task", "depixelation"))
    task_type = load_task(name)
    if values is not None and values.get("task", "depixelation") != name:
        raise UserError(f"{path}: is a configuration for --task {values.get('task', 'depixelation')}, not for {name}")
    tasks = "\n".join(f"  {name:<18}{load_task(name).summary}" for name in task_names())
    summary = f"--task {name}: {task_type.summary}."
    description = DESCRIPTION.format(summary=summary, tasks=tasks)
    actions = {"resume": RESUME, **task_type.actions, **ACTIONS}
    action, operands, config, given = parse_command_line(
        arguments, task_type.Config, actions, values, path, description, EPILOG if name == "depixelation" else None
    )
    return action and actions[action], operands, task_type(config), given


RESUME = Action(
    None,
    None,
    "go on with the run NAME from models/NAME.last.pt; its config is taken from there, options override it",
    resume,
)
ACTIONS = {
    "evaluate": Action(
        "*",
        "MODEL",
        "print what one or more models reach on images with truth, paired with the first, and plot it",
        evaluate,
    ),
    "compare": Action("+", "NAME", "draw the logs of several runs into one figure", compare),
    "zip": Action("?", "FILE", "write the archive to hand in (default: depixelation.zip)", zip_project),
    "summary": Action(
        None, None, "print each network's layers or blocks, parameters and forward FLOPs per image", summarize
    ),
}


def main(arguments=None):
    processes = Processes()
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, leaving nothing behind
    try:
        keep_freed_memory()
        action, operands, task, given = read_command_line(arguments)
        config = task.config
        if action and action is not RESUME:
            if processes.count > 1:
                raise UserError("command line: only training runs in several processes; start this with python")
            return action.run(task, given, operands)
        ends = given & {"epochs", "max_minutes"}
        if len(ends) == 1:  # an option for one end of the training replaces the other one of the file or the saved run
            other = "epochs" if ends == {"max_minutes"} else "max_minutes"
            setattr(config, other, None)
            given.add(other)
        lock = locked(config.file("models", ".lock"), "wait until it ends, or start this one with another --name")
        with quiet() if processes.rank else lock:
            return resume(task, given, processes) if action else train(config, task, processes)
    except PeerLost:
        return 1
    except UserError as error:
        if not processes.rank:
            print(f"main.py: error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print("main.py: error: batch_size: the GPU's memory is used up; try a smaller --batch_size", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"main.py: error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    finally:
        processes.leave()
        signal.signal(signal.SIGTERM, terminate)


if __name__ == "__main__":
    sys.exit(main())
