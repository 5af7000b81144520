"""What every task does with trained models: load them, tell how good they are, draw figures."""

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from architectures import BLOCKS, ResidualBlock
from processes import choose_device, choose_precision
from symmetry import PairReLU
from tasks.outputs import check_outputs, sign
from utils import Config, UserError, atomic_write, config_from_dict, load_checkpoint, show

# ------------------------------------------------------------------------------------------------ models from files


@dataclass
class Model:
    """A trained network, or a baseline, as tables know it."""

    name: str
    predict: Callable  # inputs -> outputs, in eval mode
    config: Config | None = None  # with which it was trained
    record: list = field(default_factory=list)  # training_record
    precision: str | None = None  # in which it was validated, where that was on the same kind of device


def training_record(checkpoint):
    """What a model was trained on, and on what before that: a list of {"images": name, "held_out": 1-D int64 tensor}.

    held_out: as images.held_out_digests; empty where that is not known, as of models of earlier versions.
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
        and entry["held_out"].dtype == torch.int64
        and entry["held_out"].ndim == 1
    )


def load_weights(network, checkpoint, path):
    """Weights from a checkpoint, as utils.load_checkpoint returns it, into a network.

    A network with more channels or residual blocks starts as the smaller one: what is new adds zero. Raises UserError.
    """
    try:
        own, weights = network.state_dict(), checkpoint["weights"]
        new = [name for name in own if name not in weights]
        deeper = all(isinstance(network.get_submodule(name.rsplit(".", 2)[0]), ResidualBlock) for name in new)
        wider = {name: _widened(own[name], old) if name in own else old for name, old in weights.items()}
        network.load_state_dict({**own, **wider} if deeper else wider)
    except (RuntimeError, AttributeError, IndexError, TypeError):
        raise misfit(network, checkpoint, path) from None


def misfit(network, checkpoint, path):
    """The UserError where weights are of another network."""
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


def mean_of(predictors):
    """A predictor: the mean of several predictors' outputs, before they are rounded."""
    predictors = list(predictors)
    return lambda inputs: torch.stack([predict(inputs) for predict in predictors]).mean(dim=0)


def chosen_model(task, given):
    """The model file that the configuration names, or the shipped one as long as nothing was trained."""
    config = task.config
    path = config.model or config.file("models", ".pt")
    if task.shipped and not {"model", "name"} & given and config.model is None and not os.path.exists(path):
        return task.shipped
    return path


def load_network(task, path, given, device, option="--model"):
    """(network in eval mode, on the device; the Config it was trained with; its checkpoint). Raises UserError.

    option: that names the file.
    """
    config = task.config
    checkpoint = load_checkpoint(path, f"train one first with python main.py, or name one with {option} FILE")
    check_task(task, checkpoint, path)
    made = config_from_dict(type(config), checkpoint["config"], path)
    for name in ("network", "network_options"):
        if name in given and getattr(config, name) != getattr(made, name):
            raise UserError(f"{name}: that of {show(path)} is {json.dumps(getattr(made, name))}; leave --{name} out")
    network = task.build_network(made.network, made.network_options)
    load_weights(network, checkpoint, path)
    return network.eval().to(device, memory_format=torch.channels_last), made, checkpoint


def check_task(task, checkpoint, path):
    """Refuse a model's file, by UserError, that was made for another task."""
    made_for, known = checkpoint["config"].get("task", "depixelation"), (*task.also_loads, task.config.task)
    if made_for not in known:
        raise UserError(f"{path}: is a model for --task {made_for}, not for {' or '.join(known)}")


def load_model(task, path, given, device):
    """The Model of a file, on the device. Its architecture comes from the file itself. Raises UserError."""
    baselines = task.baselines()
    if path in baselines:
        return Model(path, baselines[path])
    network, made, checkpoint = load_network(task, path, given, device)
    predict = task.predictor(network, made)
    validated_here = checkpoint.get("device") == device.type and checkpoint.get("precision") in ("float32", "bfloat16")
    precision = checkpoint["precision"] if validated_here else None
    return Model(show(path), predict, made, training_record(checkpoint), precision)


def load_models(task, given, paths):
    """(Models of some files, or of the configured one where there are none; device; precision)

    Precision auto stays with that of the first model's validation where it can: choose_precision.
    """
    device, named = choose_device(task.config.device), task.config.model
    if paths and "model" in given and paths != [named]:
        raise UserError(f"model: {show(named)} is named beside {', '.join(map(show, paths))}; leave --model out")
    baseline = task.config.network in task.baselines() and not task.config.model
    paths = paths or [task.config.network if baseline else chosen_model(task, given)]
    models = [load_model(task, path, given, device) for path in paths]
    precision = choose_precision(task.config.precision, device, models[0].precision)
    for model in models:
        if model.config:
            print(f"{model.config.network} from {model.name}; {device.type}, {str(precision)[6:]}")
    return models, device, precision


# ------------------------------------------------------------------------------------------------ figures of merit


class Measurement(NamedTuple):
    """What several predictors reach on a dataset of N samples."""

    figures: dict  # {score: (predictors, N) float64}, for each sample
    seconds: np.ndarray  # (predictors,) that each took
    sample: object  # some samples with the first predictor's output, for plot_samples
    details: np.ndarray | None = None  # what a task's own tables need, of each sample or each of its areas
    outputs: list | None = None  # where they were asked for: the samples' images, then each predictor's outputs


def mae_per_image(predictions, images):
    """The mean absolute error of each image, (N,), in the units of the images. Both (N, C, H, W)."""
    return (predictions - images).abs().flatten(1).mean(1)


def psnr_per_image(predictions, images):
    """The peak signal-to-noise ratio of each image, (N,), in dB: 10 log10(1 / MSE), for images in [0, 1].

    It ends at 100 dB, an MSE of 1e-10, so that the mean over images stays finite.
    """
    return -10 * ((predictions - images) ** 2).flatten(1).mean(1).clamp(min=1e-10).log10()


def ssim_per_image(predictions, images):
    """The structural similarity of each image (Wang et al. 2004), (N,), as papers on super-resolution mean it.

    Gaussian windows of 11x11 pixels, deviation 1.5, that lie in the image; K 0.01 and 0.03; the mean over windows and
    channels. Both (N, C, H, W) in [0, 1], of 11 pixels a side at least.
    """
    window = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).tolist()

    def blur(maps):
        height, width = (length - 10 for length in maps.shape[2:])
        maps = sum(weight * maps[:, :, i : i + height] for i, weight in enumerate(window))
        return sum(weight * maps[:, :, :, i : i + width] for i, weight in enumerate(window))

    x, y = blur(predictions), blur(images)
    xx, yy, xy = (
        blur(a * b) - c
        for a, b, c in ((predictions, predictions, x * x), (images, images, y * y), (predictions, images, x * y))
    )
    similarity = (2 * x * y + 0.01**2) * (2 * xy + 0.03**2) / ((x * x + y * y + 0.01**2) * (xx + yy + 0.03**2))
    return similarity.flatten(1).mean(1)


def warn_of_leaks(task):
    """Say so where a model that this one goes on from may have been trained on images that are held out now."""
    for entry in task.inherited:
        known, same = entry["held_out"], entry["images"] == os.path.basename(task.config.images)
        if same and len(known) and not torch.isin(task.held_out, known).all():
            print(
                f"warning: a model that this one starts or learns from was trained on {show(entry['images'])}, with "
                "others held out, so scores may be too good; leave the images and --validation_fraction as they were",
                file=sys.stderr,
            )


def confidence_interval(values, photos=None):
    """(low, high): 95 % of the means of as many photos' values, drawn with replacement (bootstrap), lie between them.

    photos: (N,) int, the number of each value's photo, as values of one photo are alike; none: each has its own.
    """
    photos = np.arange(len(values)) if photos is None else photos
    sums, counts = np.bincount(photos, values), np.bincount(photos)
    rng, n = np.random.default_rng(0), len(counts)
    means = [sums[drawn].sum() / counts[drawn].sum() for drawn in (rng.integers(n, size=n) for _ in range(1000))]
    return tuple(np.percentile(means, [2.5, 97.5]))


def evaluate(task, given, paths):
    """--evaluate: print and write tables of several models' figures on samples with truth, and draw them."""
    config = task.config
    table = config.file("losses", "_evaluation.csv")
    drawn = glob.glob(glob.escape(config.file("losses", "_evaluation")) + "*.png")
    drawn = {*drawn, config.file("losses", "_evaluation.png"), getattr(config, "sheet", None)} - {None}
    check_outputs([(table, "log"), *((path, "picture") for path in sorted(drawn))], [*paths, config.images])
    models, device, precision = load_models(task, given, paths)
    dataset, source = task.evaluation_set(given, models)
    models = task.compared(models, device)
    measured = task.measure([model.predict for model in models], dataset, device, precision)
    print(f"\nOn {source}.")
    photos = np.arange(len(dataset)) % len(getattr(dataset, "indices", dataset))  # they may take turns
    print_scores(task, models, measured, photos)
    print_differences(task, models, measured, photos)
    rows = [
        {"model": model.name, **{score: float(values[i].mean()) for score, values in measured.figures.items()}}
        for i, model in enumerate(models)
    ]
    write_table(rows, table)
    pictures = task.report(models, measured)
    print(f"\nTable: {show(table)}; pictures: {', '.join(map(show, pictures))}")
    return 0


def print_scores(task, models, measured, photos):
    """A row a model: each score's mean, of the first its interval, the task's own columns, speed."""
    width = max(len(model.name) for model in models)
    first, *others = measured.figures
    extra = task.columns(models, measured)
    head = f"{first:>6}   95 % interval  " + "".join(f"{name:>9}" for name in others)
    head += "".join(f"  {name:>7}" for name in extra)
    decimals = task.decimals
    print(f"{'':{width}} {head}  images/s")
    for i, model in enumerate(models):
        values = measured.figures[first][i]
        low, high = confidence_interval(values, photos)
        cells = [f"{measured.figures[name][i].mean():9.{decimals}f}" for name in others]
        cells += [f"  {column[i]:>{max(7, len(name))}}" for name, column in extra.items()]
        rate = len(values) / max(measured.seconds[i], 1e-9)
        figures = f"{values.mean():6.{decimals}f} {low:6.{decimals}f} to {high:6.{decimals}f}"
        print(f"{model.name:{width}} {figures}  {''.join(cells)} {rate:8.{0 if rate > 20 else 1}f}")


def print_differences(task, models, measured, photos):
    """Of the trained models, what each differs from the first in the deciding score, sample by sample."""
    trained = [i for i, model in enumerate(models) if model.config]
    if len(trained) < 2:
        return
    values = measured.figures[task.scores[0]]
    print(f"\n{task.scores[0]} less that of {models[trained[0]].name}, paired by sample, with its 95 % interval:")
    for i in trained[1:]:
        difference = values[i] - values[trained[0]]
        low, high = confidence_interval(difference, photos)
        figures = (f"{value:+.{task.decimals}f}" for value in (difference.mean(), low, high))
        print("{}  {} ({} to {})".format(models[i].name, *figures))


# ------------------------------------------------------------------------------------------------ networks


def layers_and_blocks(module, name=""):
    """(name, module) of each block, and of each layer outside of blocks, in order."""
    if name and (isinstance(module, BLOCKS) or not module._modules):
        yield name, module
    else:
        for part, child in module.named_children():
            yield from layers_and_blocks(child, f"{name}.{part}" if name else part)


def summarize(task, given, operands):
    """--summary: print every network of the task in its configured or default shape."""
    config = task.config
    for name in task.networks:
        network = task.build_network(name, config.network_options if name == config.network else {}).eval()
        shapes = {}  # of each layer's output, without the number of images
        for _, module in layers_and_blocks(network):
            module.register_forward_hook(lambda layer, _, output: shapes.update({layer: output.shape[1:]}))
        # in float32 these would compute with parities: half of the FLOPs, and half of the channels twice
        paired = any(isinstance(module, PairReLU) for module in network.modules())
        precision = torch.autocast("cpu", torch.bfloat16, enabled=paired)
        with torch.inference_mode(), precision, FlopCounterMode(display=False) as counter:
            network(task.example_input())
        flops = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
        parameters = sum(p.numel() for p in network.parameters())
        print(f"\n{name}: {parameters:,} parameters, {counter.get_total_flops() / 1e9:.3f} GFLOP an image")
        for part, module in layers_and_blocks(network):
            shape, weights = "x".join(map(str, shapes.get(module, ()))), sum(p.numel() for p in module.parameters())
            print(
                f"  {part:<12} {type(module).__name__:<15} -> {shape:<10} {weights:>9,} parameters "
                f"{flops.get(f'{name}.{part}', 0) / 1e6:>8.1f} MFLOP  {module.extra_repr()}".rstrip()
            )
    return 0


# ------------------------------------------------------------------------------------------------ tables and figures


def write_table(rows, path):
    """A CSV file, a line a dict."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(table.getvalue().encode(errors="backslashreplace"))


def read_log(path):
    """The rows of losses/NAME.csv, numbers as floats. Raises UserError."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        if rows:
            return rows
        raise ValueError("it has no rows")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a run that was trained here") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is no log of a run ({error})") from None


def save_figure(figure, path, note=""):
    """A matplotlib figure as a picture, at once or not at all: a JPEG where the name ends so, else a PNG.

    note: text that is added to the picture's comment.
    """
    text = f"{sign('picture')} {note}".strip()
    options = {"format": "png", "metadata": {"Software": text}}
    if str(path).lower().endswith((".jpg", ".jpeg")):
        options = {"format": "jpeg", "pil_kwargs": {"comment": text}}
    with atomic_write(path) as file:
        figure.savefig(file, dpi=100, **options)


def plot_images(columns, path, captions=None, note=""):
    """A sheet of images as a picture, a row a sample.

    columns: {title: (N, C, H, W) tensor of 0 to 255, C 1 or 3}. captions: {title: N texts below the images}.
    """
    captions, count = captions or {}, len(next(iter(columns.values())))
    rows = [
        [
            (images[i].permute(1, 2, 0).squeeze(2), title * (i == 0), captions[title][i] if title in captions else "")
            for title, images in columns.items()
        ]
        for i in range(count)
    ]
    plot_sheet(rows, path, note)


def plot_sheet(rows, path, note=""):
    """A sheet of images as a picture. rows: lists of (image, text above it, text below it).

    Images: (H, W) or (H, W, 3), arrays or tensors of 0 to 255. In a single Axes, as making many takes most of the time.
    note: see save_figure.
    """
    side, gap, line = 2.1, 0.1, 0.16  # inches
    texts = [[max(cell[k].count("\n") + 1 if cell[k] else 0 for cell in row) for k in (1, 2)] for row in rows]
    width = max(map(len, rows)) * (side + gap) + gap
    height = sum(side + gap + line * (above + below) for above, below in texts) + gap
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    y = gap
    for row, (above, below) in zip(rows, texts):
        y += line * above
        for k, (image, title, caption) in enumerate(row):
            image = image.numpy() if isinstance(image, torch.Tensor) else image
            x, extent = gap + k * (side + gap), side / max(image.shape[:2])
            right, bottom = x + extent * image.shape[1], y + extent * image.shape[0]
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(x, right, bottom, y))
            axes.text(x + side / 2, y - 0.03, title, ha="center", va="bottom", fontsize=8)
            axes.text(x + side / 2, y + side + 0.03, caption, ha="center", va="top", fontsize=8)
        y += side + gap + line * below
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    save_figure(figure, path, note)


def plot_curves(panels, path):
    """Curves over epochs. panels: (label of the y axis, {label of the curve: (x, y)}, keywords for Axes.set) each."""
    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    for axes, (label, curves, options) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for i, (name, (x, y)) in enumerate(curves.items()):
            style = ("-", "--", ":", "-.")[i % 4]
            axes.plot(x, y, style, marker="osv^Dx"[i % 6], markersize=3, color=str(0.6 * i / len(curves)), label=name)
        axes.set(xlabel="epoch", ylabel=label, **options)
        axes.grid(color="0.9")
        axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_columns(rows, columns, path):
    """Columns of a log over epochs, a panel each. rows: the log. columns: (name, label); the first is a loss."""
    epochs = [row["epoch"] for row in rows]
    panels = [(label, {label: (epochs, [row[name] for row in rows])}, {}) for name, label in columns]
    panels[0][2]["yscale"] = "log"
    plot_curves(panels, path)


def compare(task, given, names):
    """--compare: draw the logs of several runs of a task into one figure, a panel for the loss and for each score."""
    config = task.config
    picture = config.file("losses", "_compared.png")
    check_outputs([(picture, "picture")])
    logs = {name: read_log(config.file("losses", ".csv", name)) for name in names}
    panels = []
    columns = task.curves or ("train_loss", *task.scores)
    for column in columns:
        missing = next((name for name, rows in logs.items() if column not in rows[0]), None)
        if missing:
            raise UserError(
                f"{config.file('losses', '.csv', missing)}: has no column {column}; is it of --task {config.task}?"
            )
        curves = {name: ([row["epoch"] for row in rows], [row[column] for row in rows]) for name, rows in logs.items()}
        panels.append((column, curves, {"yscale": "log"} if column == "train_loss" else {}))
    plot_curves(panels, picture)
    width = max(map(len, names))
    print(f"{'':{width}}  minutes" + "".join(f"{column:>12}" for column in columns))
    for name, rows in logs.items():
        best = (max if task.higher_is_better else min)(rows, key=lambda row: row[task.scores[0]])
        cells = "".join(f"{best[column]:12.4g}" for column in columns)
        print(f"{name:{width}} {rows[-1]['minutes']:8.1f}{cells}")
    print(f"Each at its best {task.scores[0]}. Curves: {show(picture)}")
    return 0
