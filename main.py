"""Train a network that restores the pixelated part of an image, and write the challenge file with it.

python main.py            trains as config.json says
python main.py --predict  restores the test pickle with the trained model
python main.py --help     tells the rest
"""

import copy
import csv
import dataclasses
import io
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
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from architectures import BLOCKS, NETWORKS, IdentityModel
from datasets import (
    IMAGE_SIZE,
    PixelationDataset,
    collate,
    digest,
    epoch_order,
    open_cache,
    split_by_folder,
)
from evaluation import (
    archive,
    build_network,
    errors_per_image,
    evaluate,
    load_weights,
    make_test_set,
    plot_losses,
    plot_samples,
    predict,
    score_submission,
    show,
)
from own_photos import depixelate, pixelate
from processes import Interrupts, Processes, quiet, start_worker
from utils import (
    ROOT,
    UserError,
    atomic_write,
    build_optimizers,
    check_finite,
    check_value,
    choose_device,
    choose_precision,
    config_from_dict,
    keep_freed_memory,
    load_checkpoint,
    locked,
    parse_command_line,
    rng_state,
    save_checkpoint,
    seed_everything,
    set_rng_state,
    to_inputs,
    training_loss,
)

DESCRIPTION = """\
Restores the pixelated rectangle of 64x64 grayscale photos (JKU Linz, course challenge "Image Depixelation").

Without an action it trains: it reads config.json, then the options, prepares the images (once), trains, and after each
epoch writes, below output_dir,
  models/NAME.pt            the best model so far (EMA weights and config)
  models/NAME.json          its config, for --config
  models/NAME.last.pt       the full state of the run, for --resume
  losses/NAME.csv, .png     the log, a line an epoch, and its curve
  losses/NAME_samples.png   validation images: truth, pixelated, prediction, error"""

EPILOG = """\
examples:
  python main.py --max_minutes 5                                        a first model, without any data
  python main.py --images training.zip --max_minutes 30 --name photos   train on the course's photos
  python main.py --resume --name photos                                 go on after an interruption
  python main.py --predict --name photos --test_set test_set.pkl        write the challenge file
  python main.py --evaluate models/photos.pt models/small.pt --images training.zip   compare models
  python main.py --images training.zip --init models/photos.pt --name more   start from a model's weights

exit status: 0 done; 2 a mistake in the options or files (one line says which); 130 interrupted, the state is saved"""

ACTIONS = {  # name: (operands for argparse or None, their name, help)
    "resume": (
        None,
        None,
        "go on with the run NAME from models/NAME.last.pt; its config is taken from there, options go before it",
    ),
    "predict": (
        "*",
        "MODEL",
        "restore every image of the test pickle and write the challenge file; of several models the mean",
    ),
    "evaluate": (
        "*",
        "MODEL",
        "print the challenge's score of one or more models on images with truth, with estimated points, and plot it",
    ),
    "score": (2, ("SUBMISSION", "TARGETS"), "print the score of a challenge file; both may be compressed"),
    "make_test_set": (1, "FOLDER", "write a test pickle and its targets from images, to rehearse the hand-in"),
    "depixelate": ("+", "PHOTO", "restore the pixelated rectangle of photos of any size and colour; see also --area"),
    "pixelate": ("+", "PHOTO", "pixelate a rectangle of photos, by default the middle; see also --area, --block_size"),
    "zip": ("?", "FILE", "write the archive to hand in (default: depixelation.zip)"),
    "summary": (None, None, "print each network's layers or blocks, parameters and forward FLOPs per image"),
}

EMA_EVERY = 4  # steps between updates of the moving average: each reads and writes all weights
SAVE_EVERY = 120  # seconds of training that an interruption of any kind costs at most
# What an option may change when a run is resumed.
MAY_CHANGE = {
    "epochs",
    "max_minutes",
    "patience",
    "device",
    "precision",
    "workers",
    "images",
    "cache_dir",
    "output_dir",
}
MAY_CHANGE |= {"name", "model", "test_set", "submission", "compile", "tensorboard"}


# ------------------------------------------------------------------------------------------------ training


def training_progress(config, step, steps_per_epoch, seconds):
    """The share of the training that is done, 0 to 1: of its epochs or its minutes, whatever comes first."""
    by_epochs = step / (config.epochs * steps_per_epoch) if config.epochs else 0
    by_time = seconds / (60 * config.max_minutes) if config.max_minutes else 0
    return min(1.0, max(by_epochs, by_time))


def learning_rate(config, progress):
    """Linear warm-up, then constant, then a linear decay to 0: a function of the progress alone, 0 to 1."""
    rise = min(1.0, progress / config.warmup) if config.warmup else 1.0
    fall = min(1.0, (1 - progress) / config.decay) if config.decay else 1.0
    return config.learning_rate * rise * fall


def prepare_images(config):
    """(training set, validation set) of config.images, split by folder."""
    cache = open_cache(config.images, config.cache_dir, config.seed, config.synthetic_images)
    train_indices, validation_indices = split_by_folder(cache.names, config.validation_fraction)
    if not len(train_indices) or not len(validation_indices):
        raise UserError(
            f"images: {config.images} has {len(cache)} usable photos; training and validation need one each"
        )
    dataset = PixelationDataset(cache, train_indices, config.seed, config.crop_scale)
    return dataset, PixelationDataset(cache, validation_indices, seed=0)  # the same rectangles for every run


def train(config, processes, state=None):
    """Train config.network; state: of an interrupted run, from models/NAME.last.pt. Returns the exit status."""
    if config.epochs is None and config.max_minutes is None:
        raise UserError("epochs: null, as is max_minutes; give one of them an end")
    if not state and not processes.rank:
        check_replaceable(config)
    device = processes.join(choose_device(config.device))
    if config.compile and device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise UserError("compile: torch.compile needs a C++ compiler on a CPU, and there is none; leave --compile out")
    precision = processes.agree(choose_precision(config.precision, device))
    seed_everything(config.seed)

    network = build_network(config.network, config.network_options).to(device, memory_format=torch.channels_last)
    parameters = list(network.parameters())
    if not parameters:
        raise UserError(f"network: {config.network} has no parameters to train; choose another")
    if config.init and not state:
        load_weights(network, load_checkpoint(config.init, "name a models/NAME.pt"), config.init)
    with processes.first_alone():
        dataset, validation_set = prepare_images(config)
    steps_per_epoch = math.ceil(len(dataset) / config.batch_size)

    shipped = copy.deepcopy(network).eval()  # what is validated and written to models/NAME.pt
    average = AveragedModel(network, multi_avg_fn=ema_update(config.ema_decay), use_buffers=True)
    optimizers = build_optimizers(config.optimizer, parameters, config.weight_decay)
    model = processes.wrap(torch.compile(network) if config.compile else network, device)  # for the forward pass
    run = {"step": 0, "samples": 0, "seconds": 0.0, "rows": [], "best": math.inf, "stale": 0, "finished": False}
    run |= {"loss_sum": 0.0, "loss_count": 0}  # since the epoch began
    if state:
        path = config.file("models", ".last.pt")
        load_weights(network, state, path)
        try:
            average.load_state_dict(state["average"])
            for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved_state)
            run = {key: state["run"][key] for key in run}
            done = training_progress(config, run["step"], steps_per_epoch, run["seconds"])
            same_images = state["images"] == digest([dataset.cache.names, dataset.indices.tolist()])
            set_rng_state(state["rng"])
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: holds no state of this program ({error}); start a new run with --init") from None
        if not same_images:
            raise UserError(f"images: {config.images} no longer holds the same photos; start a new run with --init")
        if done >= 1:
            raise UserError(f"name: run {config.name!r} is finished; to go on, give it more --epochs or --max_minutes")

    workers = config.workers if config.workers is not None else (min(8, os.cpu_count()) if device.type == "cuda" else 0)
    window_side = getattr(network, "window_side", None)  # of networks that look at a window around the rectangle
    order = epoch_order(dataset, config.seed, config.batch_size, run["step"], window_side)
    batches = iter(
        DataLoader(
            dataset,
            batch_sampler=processes.shares(order),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # the global one is not to be drawn from
        )
    )
    board = open_tensorboard(config, run["step"]) if config.tensorboard and not processes.rank else None
    if not state and not processes.rank:
        save_run(config, run, network, average, optimizers, precision, dataset)  # finds out now whether that works

    print(
        f"{config.network}: {sum(p.numel() for p in parameters):,} parameters; {len(dataset):,} images to train on, "
        f"{len(validation_set):,} held out; {device.type}, {str(precision)[6:]}"
        + (f"; batches of {config.batch_size}, shared by {processes.count} processes" if processes.count > 1 else "")
    )
    started, saved = time.monotonic() - run["seconds"], run["seconds"]
    finished = False
    with Interrupts(loud=not processes.rank) as interrupts:
        while not finished:
            epoch, first_step = divmod(run["step"], steps_per_epoch)
            with tqdm(
                total=len(dataset),
                initial=first_step * config.batch_size,
                unit=" images",
                smoothing=0.1,
                mininterval=0.5,
                desc=f"epoch {epoch + 1}" + (f"/{config.epochs}" if config.epochs else ""),
                dynamic_ncols=True,
            ) as bar:
                for _ in range(first_step, steps_per_epoch):
                    progress = training_progress(config, run["step"] + 0.5, steps_per_epoch, run["seconds"])
                    for group in itertools.chain(*(optimizer.param_groups for optimizer in optimizers)):
                        group["lr"] = learning_rate(config, progress) * group["scale"]

                    pixelated_images, known_arrays, images = (t.to(device, non_blocking=True) for t in next(batches))
                    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                        predictions = model(to_inputs(pixelated_images, known_arrays))  # (N, 1, 64, 64)
                    loss, count = training_loss(config.loss, predictions, images.float() / 255, known_arrays)
                    total = processes.total(count)
                    network.zero_grad()
                    (loss * (processes.count * count / total)).backward()  # shares of a batch may differ in size
                    nn.utils.clip_grad_norm_(parameters, config.gradient_clip, foreach=True)
                    for optimizer in optimizers:
                        optimizer.step()
                    run["step"] += 1
                    if run["step"] % EMA_EVERY == 0 or run["step"] < EMA_EVERY:
                        average.update_parameters(network)

                    run["loss_sum"] = run["loss_sum"] + processes.total(loss.detach() * count)  # stays on the device
                    run["loss_count"] = run["loss_count"] + total
                    # What all processes must agree on: how much is done, the time, whether to stop.
                    mine = [len(images), time.monotonic() - started, interrupts.received]
                    sizes, seconds, stops = processes.gather(mine, device).T.tolist()
                    run["samples"] += int(sum(sizes))
                    run["seconds"] = seconds[0]
                    progress = training_progress(config, run["step"], steps_per_epoch, run["seconds"])
                    bar.update(int(sum(sizes)))
                    end_of_epoch = run["step"] % steps_per_epoch == 0 or progress >= 1
                    save = run["seconds"] - saved > SAVE_EVERY and not end_of_epoch
                    if run["step"] % 20 == 0 or save or end_of_epoch:
                        check_loss(config, run, epoch)
                        left = run["seconds"] / progress - run["seconds"]
                        bar.set_postfix_str(
                            f"loss {run['loss_sum'] / run['loss_count']:.2f}, {tqdm.format_interval(left)} left in all"
                        )
                    if save:
                        saved = run["seconds"]
                        if not processes.rank:
                            save_run(config, run, network, average, optimizers, precision, dataset)
                    if progress >= 1 or any(stops):
                        check_loss(config, run, epoch)
                        break
            if end_of_epoch:
                if not processes.rank:
                    row, sample = finish_epoch(
                        config, run, shipped, average, validation_set, device, precision, steps_per_epoch
                    )
                    if board:
                        write_tensorboard(board, row, sample)
                run["loss_sum"], run["loss_count"] = 0.0, 0
                run["seconds"], run["stale"] = processes.agree((time.monotonic() - started, run["stale"]))
                progress = training_progress(config, run["step"], steps_per_epoch, run["seconds"])
                finished = progress >= 1 or bool(config.patience and run["stale"] >= config.patience)
            run["finished"], saved = finished, run["seconds"]
            if not processes.rank:
                save_run(config, run, network, average, optimizers, precision, dataset)
            if any(stops) and not finished:
                print(
                    f"Stopped at epoch {run['step'] / steps_per_epoch:.2f}; the state is saved in "
                    f"{show(config.file('models', '.last.pt'))}. Go on with: "
                    + (f"torchrun --nproc_per_node {processes.count}" if processes.count > 1 else "python")
                    + f" main.py --resume --name {config.name}"
                    + (f" --output_dir {shlex.quote(config.output_dir)}" if config.output_dir != ROOT else "")
                )
                return 128 + int(max(stops))
    if processes.rank:
        return 0
    best = min(run["rows"], key=lambda row: row["score"])
    print(
        f"Done: best score {best['score']:.3f} at epoch {best['epoch']:g} (IdentityModel {best['identity_score']:.3f}) "
        f"on {len(validation_set):,} held-out images, after {run['seconds'] / 60:.1f} minutes of training.\n"
        f"Model: {show(config.file('models', '.pt'))}; curve and restorations: {show(config.file('losses', '.png'))}, "
        f"{show(config.file('losses', '_samples.png'))}"
    )
    return 0


def check_replaceable(config):
    """Refuse to replace a run that was interrupted; tell of a model that will be replaced."""
    path = config.file("models", ".last.pt")
    if os.path.exists(path):
        run = load_checkpoint(path, "delete it, or choose another --name").get("run")
        if isinstance(run, dict) and run.get("step") and not run.get("finished", True):
            raise UserError(
                f"{path}: the run {config.name!r} was interrupted; go on with --resume --name {config.name}, "
                f"choose another --name, or delete this file"
            )
    if os.path.exists(config.file("models", ".pt")):
        print(f"{show(config.file('models', '.pt'))} will be replaced after the first epoch; to keep it, use --name")


def check_loss(config, run, epoch):
    """Stop where the loss is not finite. (On a GPU this waits for the last step, so it is not done after each.)"""
    run["loss_count"] = float(run["loss_count"])
    run["loss_sum"] = check_finite(float(run["loss_sum"]), epoch + 1, run["step"], config.learning_rate)


def check_weights(config, run, weights, epoch):
    """Stop where a weight is not finite: the losses until now came before the last step."""
    largest = torch.stack([t.abs().max().float() for t in weights.values()]).max().item()  # NaN if there is one
    check_finite(largest, epoch, run["step"], config.learning_rate)


def finish_epoch(config, run, shipped, average, validation_set, device, precision, steps_per_epoch):
    """Validate the EMA weights as they are kept, in half precision; write the log, the pictures and the best model.

    Returns the line of the log and a sample of validation images, as errors_per_image does.
    """
    epoch = run["step"] / steps_per_epoch
    weights = {key: t.half() if t.is_floating_point() else t for key, t in average.module.state_dict().items()}
    check_weights(config, run, weights, math.ceil(epoch))
    shipped.load_state_dict(weights)
    errors, _, _, sample = errors_per_image([shipped, IdentityModel()], validation_set, device, precision)
    score, identity_score = errors.mean(axis=1).tolist()
    row = {
        "epoch": round(epoch, 3),
        "step": run["step"],
        "samples": run["samples"],
        "minutes": round(run["seconds"] / 60, 3),
        "train_loss": run["loss_sum"] / run["loss_count"],
        "score": score,
        "identity_score": identity_score,
    }
    run["rows"].append(row)
    run["stale"] += 1
    better = score < run["best"]
    if better:
        run["best"], run["stale"] = score, 0
        save_checkpoint({"config": config.without_paths(), "weights": weights, **row}, config.file("models", ".pt"))
        with atomic_write(config.file("models", ".json")) as file:
            file.write((json.dumps(config.without_paths(), indent=2) + "\n").encode())
        plot_samples(*sample, config.file("losses", "_samples.png"))
    write_log(config, run["rows"])
    print(
        f"epoch {epoch:g}: training loss {row['train_loss']:.3f}, validation score {score:.3f}"
        f"{' (best)' if better else ''}, IdentityModel {identity_score:.3f}, {row['minutes']:.1f} min"
    )
    return row, sample


def write_log(config, rows):
    """losses/NAME.csv and its curve. That they cannot be written (open in another program, say) stops no training."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        with atomic_write(config.file("losses", ".csv")) as file:
            file.write(table.getvalue().encode())
        plot_losses(rows, config.loss, config.file("losses", ".png"))
    except OSError as error:
        print(f"warning: {error.filename or config.file('losses', '.csv')}: {error.strerror or error}", file=sys.stderr)


def open_tensorboard(config, step):
    """A writer to losses/NAME_tensorboard; what an interrupted run wrote there after this step is hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard: not installed; pip install tensorboard, or leave --tensorboard out") from None
    return SummaryWriter(config.file("losses", "_tensorboard"), purge_step=step + 1)


def write_tensorboard(board, row, sample):
    """A line of the log as scalars, and the sample, (N, 1, H, W) uint8 each, as pictures."""
    for key in ("train_loss", "score", "identity_score"):
        board.add_scalar(key, row[key], row["step"])
    pixelated_images, _, predictions, images = sample
    board.add_images("truth, pixelated, prediction", torch.cat([images, pixelated_images, predictions], 3), row["step"])
    board.flush()


def save_run(config, run, network, average, optimizers, precision, dataset):
    """models/NAME.last.pt: all that --resume needs."""
    check_weights(config, run, network.state_dict(), run["step"] * config.batch_size // len(dataset) + 1)
    state = {
        "config": dataclasses.asdict(config),
        "weights": network.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "run": run,
        "rng": rng_state(),
        "precision": str(precision)[6:],
        "images": digest([dataset.cache.names, dataset.indices.tolist()]),
    }
    save_checkpoint(state, config.file("models", ".last.pt"))


def ema_update(decay):
    """The update that AveragedModel applies every EMA_EVERY steps; its memory is short while the weights move fast."""

    def update(averages, parameters, updates):
        steps = 1 + EMA_EVERY * int(updates)  # about: the first steps have an update each
        if averages[0].is_floating_point():  # the tensors of one call have one dtype
            torch._foreach_lerp_(averages, parameters, 1 - min(decay, steps / (9 + steps)) ** EMA_EVERY)
        else:
            torch._foreach_copy_(averages, parameters)

    return update


def resume(config, given, processes):
    """Go on with the run config.name as its own config says; options given on the command line go before it."""
    path = config.file("models", ".last.pt")
    state = load_checkpoint(path, f"there is no run {config.name!r} to resume; start one without --resume")
    if not {"average", "optimizers", "run", "rng", "precision", "images"} <= state.keys():
        raise UserError(f"{path}: holds no state to resume from; start a new run without --resume")
    saved = config_from_dict(state["config"], path)
    check_value("precision", state["precision"], path)
    for key in sorted(given):
        if key not in MAY_CHANGE and getattr(config, key) != getattr(saved, key):
            raise UserError(
                f"command line: {key} cannot change when a run is resumed (it was {getattr(saved, key)!r}); "
                f"leave it out, or start a new run with --init"
            )
        setattr(saved, key, getattr(config, key))
    saved.output_dir = config.output_dir
    if "precision" not in given and "device" not in given:
        saved.precision = state["precision"]  # what auto measured then
    return train(saved, processes, state)


# ------------------------------------------------------------------------------------------------ networks


def layers_and_blocks(module, name=""):
    """(name, module) of each block, and of each layer with weights outside of blocks, in order."""
    if name and (isinstance(module, BLOCKS) or module._parameters):
        yield name, module
    else:
        for part, child in module.named_children():
            yield from layers_and_blocks(child, f"{name}.{part}" if name else part)


def summary(config):
    """Print every network in its configured or default shape."""
    for name in NETWORKS:
        network = build_network(name, config.network_options if name == config.network else {}).eval()
        inputs = torch.ones(1, 2, IMAGE_SIZE, IMAGE_SIZE)
        inputs[:, 1, 16:48, 16:48] = 0  # the challenge's largest rectangle; smaller ones may take fewer FLOPs
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(inputs)
        flops = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
        parameters = sum(p.numel() for p in network.parameters())
        print(f"\n{name}: {parameters:,} parameters, {counter.get_total_flops() / 1e9:.3f} GFLOP an image")
        for part, module in layers_and_blocks(network):
            print(
                f"  {part:<12} {type(module).__name__:<14} {sum(p.numel() for p in module.parameters()):>9,} "
                f"parameters {flops.get(f'{name}.{part}', 0) / 1e6:>8.1f} MFLOP  {module.extra_repr()}".rstrip()
            )
    return 0


# ------------------------------------------------------------------------------------------------ command line


def main(arguments=None):
    processes = Processes()
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, leaving nothing behind
    try:
        keep_freed_memory()
        action, operands, config, given = parse_command_line(arguments, DESCRIPTION, ACTIONS, EPILOG)
        if processes.count > 1 and action not in ("train", "resume"):
            raise UserError(f"command line: --{action} runs in one process; start it with python, not torchrun")
        if action == "summary":
            return summary(config)
        if action == "predict":
            return predict(config, given, operands)
        if action == "evaluate":
            return evaluate(config, given, operands)
        if action == "score":
            return score_submission(*operands)
        if action == "make_test_set":
            return make_test_set(config, given, *operands)
        if action == "depixelate":
            return depixelate(config, given, operands)
        if action == "pixelate":
            return pixelate(config, operands)
        if action == "zip":
            return archive(config, given, *operands or ["depixelation.zip"])
        ends = given & {"epochs", "max_minutes"}
        if len(ends) == 1:  # an option for one end of the training replaces the other one of the file or the saved run
            other = "epochs" if ends == {"max_minutes"} else "max_minutes"
            setattr(config, other, None)
            given.add(other)
        lock = locked(config.file("models", ".lock"), "wait until it ends, or start this one with another --name")
        with quiet() if processes.rank else lock:
            return resume(config, given, processes) if action == "resume" else train(config, processes)
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
    except RuntimeError as error:
        if not processes.rank:
            raise
        if "onnection" not in str(error):  # else the first process has gone, and said why
            print(f"main.py: error: process {processes.rank}: {error}", file=sys.stderr)
        return 1
    finally:
        processes.leave()
        signal.signal(signal.SIGTERM, terminate)


if __name__ == "__main__":
    sys.exit(main())
