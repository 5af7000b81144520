"""Train a network that restores the pixelated part of an image, and write the challenge file with it.

python main.py            trains as config.json says
python main.py --predict  restores the test pickle with the trained model
python main.py --help     tells the rest
"""

import csv
import dataclasses
import io
import itertools
import json
import math
import os
import signal
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from architectures import BLOCKS, NETWORKS
from datasets import IMAGE_SIZE, PixelationDataset, collate, epoch_order, ignore_interrupts, open_cache, split_by_folder
from submission_serialization import deserialize, serialize
from utils import (
    UserError,
    atomic_write,
    check_finite,
    choose_device,
    choose_precision,
    config_from_dict,
    load_checkpoint,
    load_test_set,
    parse_command_line,
    plot_losses,
    plot_samples,
    restore,
    rmse_per_image,
    rng_state,
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
  python main.py --images training.zip --init models/photos.pt --name more   start from a model's weights

exit status: 0 done; 2 a mistake in the options or files (one line says which); 130 interrupted, the state is saved"""

ACTIONS = {
    "resume": "go on with the run NAME from models/NAME.last.pt; its config is taken from there, options go before it",
    "predict": "restore every image of the test pickle and write the challenge file",
    "evaluate": "print the challenge's score of the model on the held-out part of images, beside IdentityModel's",
    "summary": "print each network's layers or blocks, parameters and forward FLOPs per image",
}

EMA_EVERY = 4  # steps between updates of the moving average: each reads and writes all weights
SAVE_EVERY = 120  # seconds of training that an interruption of any kind costs at most
MAY_CHANGE = {
    "epochs",
    "max_minutes",
    "patience",
    "device",
    "workers",
    "images",
    "cache_dir",
    "output_dir",
    "init",
    "model",
    "test_set",
    "submission",
    "name",
    "precision",
}  # by an option, when a run is resumed


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
    dataset = PixelationDataset(cache, train_indices, config.seed, config.crop_scale)
    return dataset, PixelationDataset(cache, validation_indices, seed=0)  # the same rectangles for every run


def train(config, state=None):
    """Train config.network; state: of an interrupted run, from models/NAME.last.pt. Returns the exit status."""
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    seed_everything(config.seed)

    network = build_network(config.network, config.network_options).to(device, memory_format=torch.channels_last)
    parameters = list(network.parameters())
    if not parameters:
        raise UserError(f"network: {config.network} has no parameters to train; choose another")
    if config.init and not state:
        load_weights(network, load_checkpoint(config.init, "name a models/NAME.pt"), config.init)
    dataset, validation_set = prepare_images(config)
    steps_per_epoch = math.ceil(len(dataset) / config.batch_size)

    average = AveragedModel(network, multi_avg_fn=ema_update(config.ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True)
    run = {"step": 0, "seconds": 0.0, "rows": [], "best": math.inf, "stale": 0, "loss_sum": 0.0, "loss_count": 0}
    if state:
        load_weights(network, state, config.file("models", ".last.pt"))
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        run = state["run"]
        if training_progress(config, run["step"], steps_per_epoch, run["seconds"]) >= 1:
            raise UserError(f"name: run {config.name!r} is finished; to go on, give it more --epochs or --max_minutes")

    workers = config.workers if config.workers is not None else (min(8, os.cpu_count()) if device.type == "cuda" else 0)
    order = epoch_order(dataset, config.seed, config.batch_size, run["step"])
    batches = iter(
        DataLoader(
            dataset,
            batch_sampler=order,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        )
    )
    if state:
        set_rng_state(state["rng"])

    print(
        f"{config.network}: {sum(p.numel() for p in parameters):,} parameters; {len(dataset):,} images to train on, "
        f"{len(validation_set):,} held out; {device.type}, {str(precision)[6:]}"
    )
    started, saved = time.monotonic() - run["seconds"], time.monotonic()
    bar = None
    with Interrupts() as interrupts:
        while True:
            progress = training_progress(config, run["step"], steps_per_epoch, time.monotonic() - started)
            epoch, step_of_epoch = divmod(run["step"], steps_per_epoch)
            if bar is None:
                bar = tqdm(
                    total=len(dataset),
                    initial=step_of_epoch * config.batch_size,
                    unit=" images",
                    smoothing=0.1,
                    desc=f"epoch {epoch + 1}" + (f"/{config.epochs}" if config.epochs else ""),
                    dynamic_ncols=True,
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, progress)

            pixelated_images, known_arrays, images = (t.to(device, non_blocking=True) for t in next(batches))
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                predictions = network(to_inputs(pixelated_images, known_arrays))  # (N, 1, 64, 64)
            loss = training_loss(config.loss, predictions, images.float() / 255, known_arrays)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.gradient_clip, foreach=True)
            optimizer.step()
            run["step"] += 1
            if run["step"] % EMA_EVERY == 0:
                average.update_parameters(network)

            run["loss_sum"] = run["loss_sum"] + loss.detach().double() * len(images)  # stays on the device
            run["loss_count"] += len(images)
            bar.update(len(images))
            run["seconds"] = time.monotonic() - started
            progress = training_progress(config, run["step"], steps_per_epoch, run["seconds"])
            done = progress >= 1
            end_of_epoch = run["step"] % steps_per_epoch == 0 or done
            save = interrupts.received or time.monotonic() - saved > SAVE_EVERY
            if run["step"] % 20 == 0 or end_of_epoch or save:
                run["loss_sum"] = check_finite(float(run["loss_sum"]), epoch + 1, run["step"], config.learning_rate)
                left = run["seconds"] / progress - run["seconds"]
                bar.set_postfix_str(
                    f"loss {run['loss_sum'] / run['loss_count']:.2f}, {tqdm.format_interval(left)} left in all"
                )
            if end_of_epoch:
                bar.close()
                bar = None
                if run["step"] < EMA_EVERY:
                    average.update_parameters(network)
                finish_epoch(
                    config,
                    run,
                    network,
                    average,
                    optimizer,
                    validation_set,
                    device,
                    precision,
                    run["step"] / steps_per_epoch,
                )
                saved = time.monotonic()
                run["seconds"] = saved - started
                if done or (config.patience and run["stale"] >= config.patience):
                    break
            elif save:
                save_run(config, run, network, average, optimizer)
                saved = time.monotonic()
            if interrupts.received:
                if bar is not None:
                    bar.close()
                print(
                    f"Stopped at epoch {run['step'] / steps_per_epoch:.2f}; the state is saved in "
                    f"{show(config.file('models', '.last.pt'))}. Go on with: "
                    f"python main.py --resume --name {config.name}"
                )
                return 128 + interrupts.received
    best = min(run["rows"], key=lambda row: row["score"])
    print(
        f"Done: best score {best['score']:.3f} at epoch {best['epoch']:g} (IdentityModel {best['identity_score']:.3f}) "
        f"on {len(validation_set):,} held-out images, after {run['seconds'] / 60:.1f} minutes of training.\n"
        f"Model: {show(config.file('models', '.pt'))}; curve and restorations: {show(config.file('losses', '.png'))}, "
        f"{show(config.file('losses', '_samples.png'))}"
    )
    return 0


def finish_epoch(config, run, network, average, optimizer, validation_set, device, precision, epoch):
    """Validate the EMA weights; write the log, the pictures and the checkpoints."""
    average.module.eval()
    score, identity_score, sample = validate(average.module, validation_set, device, precision)
    check_finite(score, math.ceil(epoch), run["step"], config.learning_rate)
    run["rows"].append(
        {
            "epoch": round(epoch, 3),
            "step": run["step"],
            "samples": run["step"] * config.batch_size,
            "minutes": round(run["seconds"] / 60, 3),
            "train_loss": run["loss_sum"] / run["loss_count"],
            "score": score,
            "identity_score": identity_score,
        }
    )
    run["loss_sum"], run["loss_count"], run["stale"] = 0.0, 0, run["stale"] + 1
    better = score < run["best"]
    if better:
        run["best"], run["stale"] = score, 0
        checkpoint = {"config": config.without_paths(), "weights": average.module.state_dict(), **run["rows"][-1]}
        with atomic_write(config.file("models", ".pt")) as file:
            torch.save(checkpoint, file)
        with atomic_write(config.file("models", ".json")) as file:
            file.write((json.dumps(config.without_paths(), indent=2) + "\n").encode())
        plot_samples(*sample, config.file("losses", "_samples.png"))
    save_run(config, run, network, average, optimizer)
    table = io.StringIO()
    writer = csv.DictWriter(table, run["rows"][0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(run["rows"])
    with atomic_write(config.file("losses", ".csv")) as file:
        file.write(table.getvalue().encode())
    plot_losses(run["rows"], config.file("losses", ".png"))
    row = run["rows"][-1]
    print(
        f"epoch {epoch:g}: training loss {row['train_loss']:.3f}, validation score {score:.3f}"
        f"{' (best)' if better else ''}, IdentityModel {identity_score:.3f}, {row['minutes']:.1f} min"
    )


def validate(network, validation_set, device, precision):
    """(score, IdentityModel's score, a sample for plot_samples) on uint8 predictions, in float64."""
    sums, sample = np.zeros(2), []
    wanted = set(range(0, len(validation_set), max(1, len(validation_set) // 8)))
    position = 0
    for batch in tqdm(
        DataLoader(validation_set, 128, collate_fn=collate), desc="validation", unit=" batches", leave=False
    ):
        pixelated_images, known_arrays, images = (t.to(device) for t in batch)
        predictions = restore(network, pixelated_images, known_arrays, precision)
        for i, shown in enumerate((predictions, pixelated_images)):
            sums[i] += rmse_per_image(shown.double(), images.double(), known_arrays).sum().item()
        chosen = [i for i in range(len(images)) if position + i in wanted]
        sample.append([t[chosen].cpu() for t in (pixelated_images, known_arrays, predictions, images)])
        position += len(images)
    score, identity_score = (sums / len(validation_set)).tolist()
    return score, identity_score, [torch.cat(parts)[:8] for parts in zip(*sample)]


def save_run(config, run, network, average, optimizer):
    """models/NAME.last.pt: all that --resume needs."""
    state = {
        "config": dataclasses.asdict(config),
        "weights": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "run": run,
        "rng": rng_state(),
    }
    with atomic_write(config.file("models", ".last.pt")) as file:
        torch.save(state, file)


def ema_update(decay):
    """The update that AveragedModel applies every EMA_EVERY steps; its memory is short while the weights move fast."""

    def update(averages, parameters, updates):
        steps = 1 + EMA_EVERY * int(updates)
        weight = 1 - min(decay, steps / (9 + steps)) ** EMA_EVERY
        for average, parameter in zip(averages, parameters):
            if not average.is_floating_point():
                average.copy_(parameter)
        floating = [(a, p) for a, p in zip(averages, parameters) if a.is_floating_point()]
        if floating:
            torch._foreach_lerp_(*map(list, zip(*floating)), weight)

    return update


class Interrupts:
    """Notes Ctrl-C and SIGTERM in .received, so that the step can be finished; a second is at once."""

    def __enter__(self):
        self.received = 0
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def resume(config, given):
    """Go on with the run config.name as its own config says; options given on the command line go before it."""
    path = config.file("models", ".last.pt")
    state = load_checkpoint(path, f"there is no run {config.name!r} to resume; start one without --resume")
    if not {"average", "optimizer", "run", "rng"} <= state.keys():
        raise UserError(f"{path}: holds no state to resume from; start a new run without --resume")
    saved = config_from_dict(state["config"], path)
    for key in sorted(given):
        if key not in MAY_CHANGE and getattr(config, key) != getattr(saved, key):
            raise UserError(
                f"command line: {key} cannot change when a run is resumed (it was {getattr(saved, key)!r}); "
                f"leave it out, or start a new run with --init"
            )
        setattr(saved, key, getattr(config, key))
    saved.output_dir = config.output_dir
    if saved.epochs is None and saved.max_minutes is None:
        raise UserError("epochs: null, as is max_minutes; give one of them an end")
    return train(saved, state)


# ------------------------------------------------------------------------------------------------ networks


def build_network(name, options):
    try:
        return NETWORKS[name](**options)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
        raise UserError(f"network_options: {name} cannot be built with {json.dumps(options)} ({error})") from None


def load_weights(network, checkpoint, path):
    try:
        network.load_state_dict(checkpoint["weights"])
    except (RuntimeError, AttributeError, TypeError):
        made_by = checkpoint["config"].get("network") if isinstance(checkpoint["config"], dict) else None
        raise UserError(
            f"{path}: its weights (of {made_by}) do not fit {type(network).__name__} with these network_options; "
            f"name a model of the same architecture"
        ) from None


def load_model(config, given):
    """(network, description) of the checkpoint that --predict uses, rebuilt from the checkpoint alone, in eval mode."""
    if config.network == "IdentityModel" and not config.model:
        return build_network(config.network, {}), "IdentityModel"
    path = config.model or config.file("models", ".pt")
    checkpoint = load_checkpoint(path, "train one first with python main.py, or name one with --model FILE")
    made_with = config_from_dict(checkpoint["config"], path)
    if "network" in given and config.network != made_with.network:
        raise UserError(f"network: {show(path)} is a {made_with.network}, not a {config.network}; leave --network out")
    network = build_network(made_with.network, made_with.network_options)
    load_weights(network, checkpoint, path)
    score = f", validation score {checkpoint['score']:.3f}" if isinstance(checkpoint.get("score"), float) else ""
    return network.eval(), f"{made_with.network} from {show(path)}{score}"


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
        inputs = torch.zeros(1, 2, IMAGE_SIZE, IMAGE_SIZE)
        inputs[:, 1, 16:48, 16:48] = 1
        inputs[:, 1] = 1 - inputs[:, 1]
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


# ------------------------------------------------------------------------------------------------ prediction


def evaluate(config, given):
    """Print the model's score on the validation part of config.images. Returns the exit status."""
    network, description = load_model(config, given)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    network = network.to(device, memory_format=torch.channels_last)
    validation_set = prepare_images(config)[1]
    score, identity_score, _ = validate(network, validation_set, device, precision)
    print(f"{description}; {device.type}, {str(precision)[6:]}")
    print(
        f"score {score:.3f}, IdentityModel {identity_score:.3f}, on {len(validation_set):,} images of {config.images}"
    )
    return 0


def predict(config, given):
    """Write the challenge file for config.test_set. Returns the exit status."""
    network, description = load_model(config, given)
    pixelated_images, known_arrays = load_test_set(config.test_set)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    network = network.to(device, memory_format=torch.channels_last)
    print(f"{description}; {device.type}, {str(precision)[6:]}")
    started = time.monotonic()
    predictions = []
    with tqdm(total=len(pixelated_images), desc="restoring", unit=" images") as bar:
        for _, group in itertools.groupby(range(len(pixelated_images)), lambda i: pixelated_images[i].shape):
            group = list(group)  # neighbours of one size
            for first in range(0, len(group), 128):
                part = slice(group[first], group[min(first + 128, len(group)) - 1] + 1)
                batch = (
                    torch.from_numpy(np.stack(arrays[part])).to(device) for arrays in (pixelated_images, known_arrays)
                )
                predictions.extend(restore(network, *batch, precision).cpu().numpy())
                bar.update(part.stop - part.start)
    seconds = time.monotonic() - started
    submission = [prediction[~known] for prediction, known in zip(predictions, known_arrays)]
    assert [(a.dtype, a.shape) for a in submission] == [(np.uint8, (int((~known).sum()),)) for known in known_arrays]
    serialize(submission, config.submission)
    written = deserialize(config.submission)
    if len(written) != len(submission) or not all(map(np.array_equal, written, submission)):
        raise UserError(
            f"{config.submission}: what was read back is not what was written; check the disk and try again"
        )
    picture = os.path.splitext(config.submission)[0] + ".png"
    shape = predictions[0].shape
    shown = [i for i in range(min(8, len(predictions))) if predictions[i].shape == shape]
    plot_samples(
        *(
            torch.from_numpy(np.stack([arrays[i] for i in shown]))
            for arrays in (pixelated_images, known_arrays, predictions)
        ),
        None,
        picture,
    )
    print(
        f"Wrote {show(config.submission)}: {len(submission):,} images, {os.path.getsize(config.submission):,} bytes, "
        f"read back and checked; {len(submission) / seconds:.0f} images/s.\nThe first restorations: {show(picture)}"
    )
    return 0


# ------------------------------------------------------------------------------------------------ command line


def show(path):
    """A path as the user would type it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def main(arguments=None):
    try:
        action, config, given = parse_command_line(arguments, DESCRIPTION, {**ACTIONS}, EPILOG)
        if action == "summary":
            return summary(config)
        if action in ("predict", "evaluate"):
            return {"predict": predict, "evaluate": evaluate}[action](config, given)
        for key, other in (("epochs", "max_minutes"), ("max_minutes", "epochs")):
            if key in given and other not in given and action == "train":
                setattr(config, other, None)  # an option for one end of the training replaces the file's other one
        if action == "resume":
            return resume(config, given)
        if config.epochs is None and config.max_minutes is None:
            raise UserError("epochs: null, as is max_minutes; give one of them an end")
        return train(config)
    except UserError as error:
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


if __name__ == "__main__":
    sys.exit(main())
