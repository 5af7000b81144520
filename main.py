"""Train a network that restores images, and use it: by default the course challenge "Image Depixelation".

python main.py            trains as config.json says
python main.py --predict  restores the test pickle with the trained model
python main.py --help     lists everything else

From a batch to the weights: `train` asks the task (depixelation/tasks/NAME.py) for batches, and for a step on each. The
task computes the loss; the Learner (depixelation/engine/learner.py) updates the weights.
"""

import contextlib
import json
import math
import os
import shlex
import signal
import sys
import time

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C while PyTorch is imported: nothing to save yet

import torch
from torch.utils.data import DataLoader

from depixelation.command_line import RESUME, read_command_line
from depixelation.engine.learner import Learner
from depixelation.engine.models import training_record, warn_of_leaks
from depixelation.engine.outputs import RUN_FILES, check_outputs
from depixelation.engine.processes import (
    Interrupts,
    PeerLost,
    Processes,
    check_open_files,
    choose_device,
    choose_precision,
    errors_of_workers,
    keep_freed_memory,
    lasting_output,
    quiet,
    seed_everything,
    shortage,
    start_worker,
    workers_end,
)
from depixelation.engine.run import SHORT, EpochBar, Run, restore_run, save_run
from depixelation.engine.tables import write_table
from depixelation.figures.curves import plot_curves
from depixelation.figures.sheets import plot_sheet
from utils import (
    ROOT,
    UserError,
    atomic_write,
    check_value,
    config_from_dict,
    display_path,
    load_checkpoint,
    locked,
    override,
    save_checkpoint,
)


def train(config, task, processes, state=None):
    """Train the task's network and return the exit status. state: an interrupted run's, from models/NAME.last.pt."""
    device = processes.join(choose_device(config.device))
    precision = processes.agree(choose_precision(config.precision, device))
    seed_everything(config.seed)
    network = task.build(device, precision, processes)
    if not any(True for _ in network.parameters()):
        raise UserError(f"network: {config.network} has no parameters to train; choose another")
    if config.init and not state:
        start_from(config.init, task, network)
    with processes.first_alone():
        task.prepare()
    if not state and not processes.rank:
        warn_of_leaks(task)
    learner = Learner(network, config, precision, processes)
    run = restore_run(config, task, learner, state) if state else Run(inherited=task.inherited)
    run.begin(config, math.ceil(len(task.training_set) / config.batch_size))
    if state and run.finished:
        limit = "--epochs or --max_minutes" if run.progress(run.step) >= 1 else "--patience"
        raise UserError(f"name: run {config.name!r} is finished; to go on, give it more {limit}")
    batches = load_batches(config, task, network, run.step, processes, device)
    board = open_tensorboard(config, run.step) if config.tensorboard and not processes.rank else None
    if not state:
        save_run(config, task, run, learner)  # fail now, not after minutes, if it cannot be written
    tell_start(config, task, learner)
    bar = EpochBar(len(task.training_set))
    with Interrupts(loud=not processes.rank) as interrupts, bar, batches as batches:
        for batch in batches:
            batch = [tensor.to(device, non_blocking=True) for tensor in batch]
            task.begin_step(network, run.progress(run.step))
            losses, count = task.train_step(learner, batch, run.learning_rate())
            run.add(losses, count, processes, device)
            run.count_step(len(batch[0]), interrupts.received, processes, device)
            bar.update(run)
            if run.validation_due:
                if not processes.rank:
                    validate(config, task, run, learner, board)
                run.end_validation(processes)
            elif run.preview_due and not processes.rank:
                preview(config, task, run, learner)
            if run.save_due:
                run.saved = run.seconds
                save_run(config, task, run, learner)
            if run.finished or run.stopped_by:
                break
    if processes.rank:
        return 0
    return tell_end(config, task, run, processes)


def check_start(config, task, config_file=None, state=None):
    """Raise UserError if the run has no end, or would replace an interrupted run or one of the user's files."""
    if config.epochs is None and config.max_minutes is None:
        raise UserError("epochs: null, as is max_minutes; give one of them an end")
    if task.keeps_last and config.patience:
        raise UserError("patience: a training for realism keeps its last weights, not the best; leave it out")
    inputs = [config.images] + ([] if state else [config.init, config_file])
    check_outputs([(config.file(folder, suffix), kind) for folder, suffix, kind in RUN_FILES], inputs)
    best, last = (config.file("models", suffix) for suffix in (".pt", ".last.pt"))
    if state:
        validated = isinstance(state["run"], dict) and state["run"].get("rows")
        if os.path.exists(best) and not validated:
            name = display_path(best)
            print(f"{name} may be another run's; it will be replaced at the first validation, so copy it")
        return
    if os.path.exists(last):
        run = load_checkpoint(last, "delete it, or choose another --name", part="config").get("run")
        if isinstance(run, dict) and run.get("step") and not run.get("finished", True):
            raise UserError(
                f"{last}: run {config.name!r} was interrupted; go on with --resume --name {shlex.quote(config.name)}, "
                f"choose another --name, or delete this file"
            )
    paths = [config.file(folder, suffix) for folder, suffix, _ in RUN_FILES]
    others = [path for path in paths if path != last]
    for replaced, when in (([last], "as soon as this run begins"), (others, "when it validates")):
        existing = ", ".join(display_path(path) for path in replaced if os.path.exists(path))
        if existing:
            print(f"{existing} will be replaced {when}; to keep what is there, use --name")


def start_from(path, task, network):
    """Load the weights of another model's file, --init, into the network."""
    checkpoint = load_checkpoint(path, "name a models/NAME.pt")
    task.load_weights(network, checkpoint, path)
    task.inherited += training_record(checkpoint)


def load_batches(config, task, network, step, processes, device):
    """A context with an endless iterator over this process's share of the task's collated batches, from `step` on.

    The workers start with the first batch and end with the context: they ignore signals, so exit could hang.
    """
    workers = config.workers if config.workers is not None else (min(8, os.cpu_count()) if device.type == "cuda" else 0)
    check_open_files(workers)
    loader = DataLoader(
        task.training_set,
        batch_sampler=processes.shares(task.batches(network, step)),
        collate_fn=task.collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # leaves the global one alone, so that resuming is exact
    )

    def batches():
        with errors_of_workers():
            yield from loader

    return contextlib.closing(batches())


def validate(config, task, run, learner, board):
    """Validate the averaged weights in the precision they are saved in; write the log, figures and best model.

    Raises UserError, before anything is written, if a file that is not this program's has taken the model's place. What
    takes the place of a log or figure is kept, with a warning.
    """
    check_run_files(config, "models", f"; then go on with --resume --name {shlex.quote(config.name)}")
    weights = learner.kept_weights()
    run.check_weights(weights)
    figures, first, sample = task.validate(learner.predictor())
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
    better = run.best is None or task.keeps_last or (score > run.best if task.higher_is_better else score < run.best)
    run.best, run.stale = (score, 0) if better else (run.best, run.stale + 1)
    if better:
        save_model(config, task, run, learner, weights)
    try:
        check_run_files(config, "losses")
        if better:
            plot_sheet(task.sample_sheet(sample), config.file("losses", "_samples.png"))
        write_table(run.rows, config.file("losses", ".csv"))
        plot_run(config, task, run, row | first)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    except OSError as error:  # open in another program, say: no reason to stop the training
        print(f"warning: {error.filename or config.file('losses', '.csv')}: {error.strerror or error}", file=sys.stderr)
    reference, shown = task.reference(row), f"{score:.{task.decimals}f}{' (best)' * (better and not task.keeps_last)}"
    print(
        f"epoch {run.epoch:.3g}: training loss {next(iter(run.means().values())):.4g}, validation {task.scores[0]} "
        f"{shown}{', ' * bool(reference)}{reference}, {row['minutes']:.1f} min"
    )
    if board:
        for name in list(row)[4:]:
            board.add_scalar(name, row[name], row["step"])
        for title, images in task.pictures(sample).items():
            board.add_images(title, images, row["step"])
        board.flush()


def plot_run(config, task, run, first):
    """Draw the log; of a short run the previews. first: the log's last row, with the figures of their images alone."""
    rows, title = run.rows, ""
    if run.previews:
        run.previews.append(first)  # the score on all images would make the curve jump
    if len(run.rows) < len(run.previews) and len(run.rows) <= SHORT:
        rows, score, count = run.previews, run.rows[-1][task.scores[0]], len(task.validation_set)
        title = f"Validated on the first {min(task.preview_images, count)} held-out images. "
        title += f"On all {count:,}: {task.scores[0]} {score:.{task.decimals}f}"
    plot_curves(task.log_panels(rows), config.file("losses", ".png"), title)


def check_run_files(config, folder, advice=""):
    """Raise UserError, which ends with `advice`, if one of the run's files in this folder is not this program's."""
    try:
        check_outputs([(config.file(place, suffix), kind) for place, suffix, kind in RUN_FILES if place == folder])
    except UserError as error:
        raise UserError(f"{error}{advice}") from None


def preview(config, task, run, learner):
    """Validate on a few images: a short run has too few full validations to draw a curve."""
    if not task.preview_images:
        return
    started = time.monotonic()
    learner.kept_weights()
    figures, *_ = task.validate(learner.predictor(), task.preview_images)
    row = {"epoch": round(run.epoch, 3), "step": run.step, "samples": run.samples, **run.means(), **figures}
    run.previews.append(row)
    run.preview_seconds += time.monotonic() - started
    score = f"{figures[task.scores[0]]:.{task.decimals}f}"
    loss = next(iter(run.means().values()))
    print(
        f"{run.progress(run.step):.0%} of the run: training loss {loss:.4g}, {task.scores[0]} {score} on the first "
        f"{task.preview_images} held-out images"
    )


def save_model(config, task, run, learner, weights):
    """Write the model with its scores and training record, models/NAME.pt, and its config, models/NAME.json."""
    record = [*run.inherited, {"images": config.images_name(), "held_out": task.held_out}]
    kept = {"config": config.without_paths(), "weights": weights, **run.rows[-1]}
    kept |= {"record": record, "precision": str(learner.precision)[6:], "device": learner.device.type}
    save_checkpoint(kept, config.file("models", ".pt"))
    with atomic_write(config.file("models", ".json")) as file:
        file.write((json.dumps(config.without_paths(), indent=2) + "\n").encode())


def tell_start(config, task, learner):
    """Print one line: the network, its images and the device."""
    count, device = learner.processes.count, learner.device
    shared = f"; batches of {config.batch_size}, shared by {count} processes" if count > 1 else ""
    print(
        f"{config.network}: {sum(p.numel() for p in learner.parameters):,} parameters; "
        f"{task.count_images():,} images to train on, {len(task.validation_set):,} held out; "
        f"{device.type}, {str(learner.precision)[6:]}{shared}"
    )
    if config.precision == "bfloat16" and choose_precision("auto", device, kept="bfloat16") != learner.precision:
        print("warning: bfloat16 is far slower than float32 on this machine; use --precision float32", file=sys.stderr)


def tell_end(config, task, run, processes):
    """Print how the run ended and what to do next. Returns the exit status."""
    if run.stopped_by and not run.finished:
        command = f"torchrun --nproc_per_node {processes.count}" if processes.count > 1 else "python"
        options = f" --task {config.task}" if config.task != "depixelation" else ""
        options += f" --output_dir {shlex.quote(config.output_dir)}" if config.output_dir != ROOT else ""
        print(
            f"Stopped at epoch {run.epoch:.2f}; the state is saved in "
            f"{display_path(config.file('models', '.last.pt'))}. "
            f"Go on with: {command} main.py --resume --name {shlex.quote(config.name)}{options}"
        )
        return 128 + run.stopped_by
    score = task.scores[0]
    best = run.rows[-1]
    if not task.keeps_last:
        best = (max if task.higher_is_better else min)(run.rows, key=lambda row: row[score])
    reference, shown = task.reference(best), f"{best[score]:.{task.decimals}f}"
    which = "last" if task.keeps_last else "best"
    model, curve, samples = (
        display_path(config.file(*place))
        for place in (("models", ".pt"), ("losses", ".png"), ("losses", "_samples.png"))
    )
    print(
        f"Done: {which} {score} {shown} at epoch {best['epoch']:.3g}{f' ({reference})' if reference else ''} "
        f"on {len(task.validation_set):,} held-out images, after {run.seconds / 60:.1f} "
        f"minutes of training.\nModel: {model}; curve and samples: {curve}, {samples}"
    )
    if task.next_command:
        print(f"Next: python main.py {task.next_command} --name {shlex.quote(config.name)}")
    return 0


def open_tensorboard(config, step):
    """A writer to losses/NAME_tensorboard; it hides what an interrupted run wrote there after this step."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard: not installed; pip install tensorboard, or leave --tensorboard out") from None
    return SummaryWriter(config.file("losses", "_tensorboard"), purge_step=step + 1)


def resume(request, processes):
    """Resume the run config.name with its own config; options named on the command line override that."""
    task, config = request.task, request.task.config
    path = config.file("models", ".last.pt")
    advice = f"there is no run {config.name!r} to resume; start one without --resume"
    state = load_checkpoint(path, advice, part="parts")
    if not {"run", "rng", "precision", "images"} <= state.keys():
        raise UserError(f"{path}: holds no state to resume from; start a new run without --resume")
    made_for = state["config"].get("task")
    if made_for != config.task:
        raise UserError(f"{path}: is a run of --task {made_for}, not of {config.task}")
    if state["config"].get("teacher"):
        raise UserError(f"{path}: learns from a teacher, which this version cannot; start a new run with --init")
    saved = config_from_dict(type(config), state["config"], path)
    check_value(type(config), "precision", state["precision"], path)
    for name, value in sorted(request.named.items()):
        changed = getattr(override(saved, {name: value}), name) != getattr(saved, name)
        if changed and not config.limits(name).get("may_change"):
            raise UserError(
                f"command line: {name} cannot change when a run is resumed (it was {getattr(saved, name)!r}); "
                f"leave it out, or start a new run with --init"
            )
    changes = {**request.named, "output_dir": config.output_dir, "name": config.name}  # as named now, not as saved
    if not os.path.isdir(saved.cache_dir):  # the project was moved
        changes["cache_dir"] = config.cache_dir
    if not {"precision", "device"} & request.named.keys():
        changes["precision"] = state["precision"]  # auto chose it for the whole run
    saved = override(saved, changes)
    task = type(task)(saved)
    if not processes.rank:
        check_start(saved, task, state=state)
    return train(saved, task, processes, state)


def main(arguments=None):
    with lasting_output():
        return run_command(arguments)


def run_command(arguments):
    """Run the command that the arguments name, or train. Returns the exit status."""
    processes, training = Processes(), False
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, leaving nothing behind
    try:
        keep_freed_memory()
        request = read_command_line(sys.argv[1:] if arguments is None else arguments)
        if request is None:
            return 0
        task, command = request.task, request.command
        config = task.config
        if command and command is not RESUME:
            if processes.count > 1:
                raise UserError("command line: only training runs in several processes; start this with python")
            return command.run(task, request.options, request.operands)
        training = True
        lock = locked(config.file("models", ".lock"), "wait until it ends, or start this one with another --name")
        with quiet() if processes.rank else lock, workers_end():
            if command:
                return resume(request, processes)
            if not processes.rank:
                check_start(config, task, request.config_file)
            return train(config, task, processes)
    except PeerLost:
        return 1
    except UserError as error:
        if not processes.rank:
            print(f"main.py: error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, OSError, OverflowError, RuntimeError) as error:
        advice = shortage(error, training)
        if not advice and not isinstance(error, OSError):
            raise
        advice = advice or f"{error.filename or 'file'}: {error.strerror or error}"
        print(f"main.py: error: {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    finally:
        processes.leave()
        signal.signal(signal.SIGTERM, terminate)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # finished: a late Ctrl-C shall print no traceback
    sys.exit(status)
