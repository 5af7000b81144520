"""Train a network that restores images, and use it: by default the course challenge "Image Depixelation".

python main.py            trains as config.json says
python main.py --predict  restores the test pickle with the trained model
python main.py --help     tells the rest

A batch from file to loss: `train` asks the task (tasks/NAME.py) for batches and for the loss of each of its parts, and
each part (tasks/training.py) for a step.
"""

import json
import math
import os
import shlex
import shutil
import signal
import sys

import torch
from torch.utils.data import DataLoader

from processes import (
    Interrupts,
    PeerLost,
    Processes,
    choose_device,
    choose_precision,
    keep_freed_memory,
    lasting_output,
    quiet,
    seed_everything,
    shortage,
    start_worker,
)
from tasks import Action, load_task, task_names
from tasks.challenge import zip_project
from tasks.evaluation import compare, evaluate, summarize, training_record, warn_of_leaks, write_table
from tasks.outputs import RUN_FILES, check_outputs
from tasks.training import EpochBar, Part, Run, restore_run, save_run
from utils import (
    ROOT,
    Parser,
    UserError,
    atomic_write,
    check_value,
    config_from_dict,
    load_checkpoint,
    locked,
    parse_command_line,
    read_config_file,
    save_checkpoint,
    show,
)


def train(config, task, processes, state=None):
    """Train the task's networks; state: of an interrupted run, from models/NAME.last.pt. Returns the exit status."""
    check_start(config, task, processes, state)
    device = processes.join(choose_device(config.device))
    precision = processes.agree(choose_precision(config.precision, device))
    seed_everything(config.seed)
    networks = {name: net.to(device, memory_format=torch.channels_last) for name, net in task.build_parts().items()}
    network = networks[task.parts[0]]
    if not any(True for _ in network.parameters()):
        raise UserError(f"network: {config.network} has no parameters to train; choose another")
    if config.init and not state:
        checkpoint = load_checkpoint(config.init, "name a models/NAME.pt")
        task.load_weights(network, checkpoint, config.init)
        task.inherited += training_record(checkpoint)
    with processes.first_alone():
        task.prepare()
    if not state and not processes.rank:
        warn_of_leaks(task)
    parts = {}
    for name, net in networks.items():
        model = processes.wrap(torch.compile(net) if config.compile and not parts else net, device)
        parts[name] = Part(net, config, precision, model)
    run = restore_run(config, task, parts, state) if state else Run(inherited=task.inherited)
    run.begin(config, math.ceil(len(task.training_set) / config.batch_size))
    if state and run.finished:
        limit = "--epochs or --max_minutes" if run.progress(run.step) >= 1 else "--patience"
        raise UserError(f"name: run {config.name!r} is finished; to go on, give it more {limit}")
    batches = load_batches(config, task, network, run.step, processes, device)
    board = open_tensorboard(config, run.step) if config.tensorboard and not processes.rank else None
    if not state and not processes.rank:
        save_run(config, task, run, parts, precision)  # finds out now whether that works
    tell_start(config, task, network, device, precision, processes)
    with Interrupts(loud=not processes.rank) as interrupts, EpochBar(len(task.training_set)) as bar:
        for batch in batches:
            batch = [tensor.to(device, non_blocking=True) for tensor in batch]
            for name, part in parts.items():
                losses, count = task.loss(name, parts, batch)
                count = torch.as_tensor(count, dtype=torch.float64, device=device)
                share = processes.count * count / processes.total(count)  # shares of a batch may differ in size
                part.step(next(iter(losses.values())) * share, run.learning_rate())
                run.add(losses, count, processes)
            run.count_step(len(batch[0]), interrupts.received, processes, device)
            bar.update(run)
            if run.validation_due:
                if not processes.rank:
                    validate(config, task, run, parts, device, precision, board)
                run.end_validation(processes)
            if run.save_due:
                run.saved = run.seconds
                if not processes.rank:
                    save_run(config, task, run, parts, precision)
            if run.finished or run.stopped_by:
                break
    del batches  # now, or its workers, which ignore signals, might be waited for at Python's end, without end
    if processes.rank:
        return 0
    return tell_end(config, task, run, processes)


def check_start(config, task, processes, state):
    """Refuse at once what cannot end well: no end, no compiler, the replacement of an interrupted run."""
    if config.epochs is None and config.max_minutes is None:
        raise UserError("epochs: null, as is max_minutes; give one of them an end")
    if task.keeps_last and config.patience:
        raise UserError("patience: a training for realism keeps its last weights, not the best; leave it out")
    compilers = ("c++", "g++", "clang++", "cl")
    if config.compile and choose_device(config.device).type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError("compile: torch.compile needs a C++ compiler on a CPU, and there is none; leave --compile out")
    if processes.rank:
        return
    inputs = [config.images, getattr(config, "teacher", None)] + ([] if state else [config.init, config.config_file])
    check_outputs([(config.file(folder, suffix), kind) for folder, suffix, kind in RUN_FILES], inputs)
    best, last = (config.file("models", suffix) for suffix in (".pt", ".last.pt"))
    if state:
        validated = isinstance(state["run"], dict) and state["run"].get("rows")
        if os.path.exists(best) and not validated:
            print(f"{show(best)} may be another run's; it will be replaced at the first validation, so copy it")
        return
    if os.path.exists(last):
        run = load_checkpoint(last, "delete it, or choose another --name", part="config").get("run")
        if isinstance(run, dict) and run.get("step") and not run.get("finished", True):
            raise UserError(
                f"{last}: run {config.name!r} was interrupted; go on with --resume --name {shlex.quote(config.name)}, "
                f"choose another --name, or delete this file"
            )
    for path, when in ((last, "as soon as this run begins"), (best, "at the first validation")):
        if os.path.exists(path):
            print(f"{show(path)} will be replaced {when}; to keep it, use --name")


def tell_start(config, task, network, device, precision, processes):
    """One line: what is trained, on what, where."""
    shared = f"; batches of {config.batch_size}, shared by {processes.count} processes" if processes.count > 1 else ""
    print(
        f"{config.network}: {sum(p.numel() for p in network.parameters()):,} parameters; "
        f"{task.count_images():,} images to train on, {len(task.validation_set):,} held out; "
        f"{device.type}, {str(precision)[6:]}{shared}"
    )
    if config.precision == "bfloat16" and choose_precision("auto", device, kept="bfloat16") != precision:
        print("warning: bfloat16 is far slower than float32 on this machine; use --precision float32", file=sys.stderr)


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


def validate(config, task, run, parts, device, precision, board):
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
    better = run.best is None or task.keeps_last or (score > run.best if task.higher_is_better else score < run.best)
    run.best, run.stale = (score, 0) if better else (run.best, run.stale + 1)
    if better:
        kept = {"config": config.without_paths(), "weights": weights, **row}
        record = [*run.inherited, {"images": os.path.basename(config.images), "held_out": task.held_out}]
        kept |= {"record": record, "precision": str(precision)[6:], "device": device.type}
        save_checkpoint(kept, config.file("models", ".pt"))
        with atomic_write(config.file("models", ".json")) as file:
            file.write((json.dumps(config.without_paths(), indent=2) + "\n").encode())
    try:
        if better:
            task.plot_samples(sample, config.file("losses", "_samples.png"))
        write_table(run.rows, config.file("losses", ".csv"))
        task.plot_log(run.rows, config.file("losses", ".png"))
    except OSError as error:  # open in another program, say; that stops no training
        print(f"warning: {error.filename or config.file('losses', '.csv')}: {error.strerror or error}", file=sys.stderr)
    reference, shown = task.reference(row), f"{score:.{task.decimals}f}{' (best)' * (better and not task.keeps_last)}"
    print(
        f"epoch {run.epoch:g}: training loss {next(iter(run.means().values())):.4g}, validation {task.scores[0]} "
        f"{shown}{', ' * bool(reference)}{reference}, {row['minutes']:.1f} min"
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
    best = run.rows[-1]
    if not task.keeps_last:
        best = (max if task.higher_is_better else min)(run.rows, key=lambda row: row[score])
    reference, shown = task.reference(best), f"{best[score]:.{task.decimals}f}"
    which = "last" if task.keeps_last else "best"
    print(
        f"Done: {which} {score} {shown} at epoch {best['epoch']:g}{f' ({reference})' if reference else ''} "
        f"on {len(task.validation_set):,} held-out images, after {run.seconds / 60:.1f} "
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
    if not os.path.isdir(saved.cache_dir):  # the project was moved
        saved.cache_dir = config.cache_dir
    if "precision" not in given and "device" not in given:
        saved.precision = state["precision"]  # what auto measured then
    return train(saved, type(task)(saved), processes, state)


# ------------------------------------------------------------------------------------------------ command line

DESCRIPTION = """\
{summary}

Without an action it trains: it reads the configuration, then the options, prepares the images (once), trains, and after
each epoch (--validate_every) writes, below output_dir,
  models/NAME.last.pt       the full state of the run, for --resume
  losses/NAME.csv, .png     the log, a line per validation, and its curve
and, if the score is the best so far,
  models/NAME.pt            the model (EMA weights and config)
  models/NAME.json          its config, for --config
  losses/NAME_samples.png   examples from the validation images

tasks (python main.py --task NAME --help shows the commands and keys of each):
{tasks}"""

EPILOG = """\
examples:
  python main.py --max_minutes 5                                        a first model, without any data
  python main.py --images training.zip --max_minutes 25 --name mine     train on the course's photos
  python main.py --resume --name mine                                   go on after an interruption
  python main.py --predict --name mine --test_set test_set.pkl          write the challenge file
  python main.py --evaluate models/photos.pt models/mine.pt --images training.zip   compare models
  python main.py --images training.zip --init models/photos_cpu.pt --name more   start from a model's weights

exit status: 0 done; 1 some photos were not restored (a line each says why);
2 a mistake in the options or files (one line says which); 130 or 143
interrupted, the state is saved"""


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
    task_type = load_task(name, path if path and not first.task else "command line")
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
    with lasting_output():
        return run_command(arguments)


def run_command(arguments):
    """The exit status of what the command line asks for."""
    processes, training = Processes(), False
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, leaving nothing behind
    try:
        keep_freed_memory()
        action, operands, task, given = read_command_line(arguments)
        config = task.config
        if action and action is not RESUME:
            if processes.count > 1:
                raise UserError("command line: only training runs in several processes; start this with python")
            return action.run(task, given, operands)
        training = True
        ends = given & {"epochs", "max_minutes"}
        if len(ends) == 1 and getattr(config, *ends) is not None:  # it replaces the file's or the saved run's other end
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
    except (MemoryError, RuntimeError) as error:
        if not shortage(error):
            raise
        print(f"main.py: error: {shortage(error, training)}", file=sys.stderr)
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
