"""What is done with trained models: the score and what explains it, the challenge file, the hand-in."""

import bz2
import functools
import glob
import gzip
import io
import itertools
import json
import lzma
import os
import pickle
import shlex
import time
import zipfile
import zlib

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from architectures import NETWORKS, BlockGrid, IdentityModel, find_block_sizes, interpolate
from datasets import IMAGE_SIZE, SIZE_RANGE, PixelationDataset, collate, open_cache, split_by_folder
from submission_serialization import deserialize, load_test_set, serialize
from utils import (
    ROOT,
    UserError,
    atomic_write,
    choose_device,
    choose_precision,
    config_from_dict,
    load_checkpoint,
    restore,
    rmse_per_image,
)

SHIPPED = os.path.join(ROOT, "models", "photos.pt")  # what predicts as long as no model was trained
REFERENCE = os.path.join(ROOT, "models", "BasicCNN.pt")  # its score is worth 200 points
BATCH = 256  # images; more fill the groups of equal windows better, and take more memory
MAX_SUBMISSION_BYTES = 2**28
MAX_PARAMETERS = 10**9
# Scores of the course's leaderboard of 2023, on other photos of the same set.
LEADERBOARD_2023 = {"IdentityModel": 23.163, "BasicCNN": 17.892, "rank 10": 14.484, "rank 7": 14.309, "rank 5": 13.952}
LEADERBOARD_2023 |= {"rank 3": 13.672, "rank 2": 13.634, "rank 1": 12.649}


# ------------------------------------------------------------------------------------------------ models from files


def build_network(name, options):
    """A network in training mode. Options that it cannot be built or run with raise UserError."""
    try:
        with torch.device("meta"):  # without memory: options may come from a file of others
            if sum(p.numel() for p in NETWORKS[name](**options).parameters()) > MAX_PARAMETERS:
                raise ValueError(f"over {MAX_PARAMETERS:,} parameters")
        network = NETWORKS[name](**options)
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 2, IMAGE_SIZE, IMAGE_SIZE))
        return network.train()
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError, ArithmeticError) as error:
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


class Ensemble(nn.Module):
    """The mean of several networks' predictions, before they are rounded."""

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs):
        return torch.stack([network(inputs) for network in self.networks]).mean(dim=0)


def load_models(config, given, paths):
    """The models of some files, of config.model where there are none, else of the run config.name.

    Returns ([network in eval mode], [its name for tables], [config of each trained one]), device and precision. A
    model's architecture comes from its own file.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if not paths:
        path = config.model or config.file("models", ".pt")
        if config.network == "IdentityModel" and not config.model:
            path = "IdentityModel"
        elif not {"model", "name"} & given and config.model is None and not os.path.exists(path):
            path = SHIPPED  # nothing was trained here yet
        paths = [path]
    networks, names, made_with = [], [], []
    for path in paths:
        if path == "IdentityModel":
            networks.append(IdentityModel().eval())
            names.append(path)
            continue
        checkpoint = load_checkpoint(path, "train one first with python main.py, or name one with --model FILE")
        made = config_from_dict(checkpoint["config"], path)
        if "network" in given and config.network != made.network:
            raise UserError(f"network: {show(path)} is a {made.network}, not a {config.network}; leave --network out")
        network = build_network(made.network, made.network_options)
        load_weights(network, checkpoint, path)
        if hasattr(network, "views"):
            network.views = config.views
        networks.append(network.eval().to(device, memory_format=torch.channels_last))
        names.append(show(path))
        made_with.append(made)
        print(f"{made.network} from {show(path)}; {device.type}, {str(precision)[6:]}")
    return (networks, names, made_with), device, precision


# ------------------------------------------------------------------------------------------------ the score


def errors_per_image(networks, dataset, device, precision):
    """What each network's uint8 predictions miss.

    Returns errors, (networks, N) float64, the RMSE on each image's unknown pixels; geometry, (N, 2) int64, the block
    size (as it can be recovered) and the rectangle's area in pixels; the seconds that each network took; and a sample
    of eight images for plot_samples, with the predictions of the first network.
    """
    errors, geometry, sample, seconds = [], [], [], np.zeros(len(networks))
    wanted = set(range(0, len(dataset), max(1, len(dataset) // 8)))
    sizes = range(SIZE_RANGE[0], SIZE_RANGE[1] + 1)
    position = 0
    loader = DataLoader(dataset, BATCH, collate_fn=collate, generator=torch.Generator())  # the global one is training's
    for batch in tqdm(loader, desc="validation", unit=" batches", leave=False):
        pixelated_images, known_arrays, images = (t.to(device) for t in batch)
        rows = []
        for i, network in enumerate(networks):
            started = time.perf_counter()
            predictions = restore(network, pixelated_images, known_arrays, precision).cpu()
            seconds[i] += time.perf_counter() - started
            rows.append(rmse_per_image(predictions.double(), batch[2].double(), batch[1]))
            if i == 0:
                chosen = [k for k in range(len(images)) if position + k in wanted]
                sample.append([t[chosen] for t in (batch[0], batch[1], predictions, batch[2])])
        errors.append(torch.stack(rows))
        unknown = ~batch[1][:, 0]
        geometry.append(torch.stack([find_block_sizes(batch[0][:, 0], unknown, sizes), unknown.sum((1, 2))], dim=1))
        position += len(images)
    sample = [torch.cat(parts)[:8] for parts in zip(*sample)]
    return torch.cat(errors, dim=1).numpy(), torch.cat(geometry).numpy(), seconds, sample


def images_with_truth(config, given, made_with):
    """(dataset, what it is in words): images of config.images on which none of the models was trained.

    Where models were trained on a source of this name, these are the ones held out by all of them; else all.
    """
    trained = [made for made in made_with if _stem(made.images) == _stem(config.images)]
    for key in {"seed", "synthetic_images"} - given:
        if trained:
            setattr(config, key, getattr(trained[0], key))
    cache = open_cache(config.images, config.cache_dir, config.seed, config.synthetic_images)
    source = "drawn images" if config.images == "synthetic" else f"images of {show(config.images)}"
    if trained or config.images == "synthetic":
        split_as = [config] if "validation_fraction" in given or not trained else trained
        splits = [split_by_folder(cache.names, made.validation_fraction)[1] for made in split_as]
        indices = functools.reduce(np.intersect1d, splits)
        if not len(indices):
            raise UserError(f"images: these models held out no image of {config.images} in common; name other images")
        return PixelationDataset(cache, indices, seed=0), f"{len(indices):,} {source}, held out of training"
    if made_with:
        trained_on = ", ".join(sorted({os.path.basename(made.images) for made in made_with}))
        print(f"Trained on {trained_on}: if the {source} are among these, the score is too good.")
    return PixelationDataset(cache, np.arange(len(cache)), seed=0), f"all {len(cache):,} {source}"


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def confidence_interval(errors, draws=1000):
    """(low, high): 95 % of the means of as many images, drawn with replacement (bootstrap), lie between them."""
    rng, n = np.random.default_rng(0), len(errors)
    means = [errors[rng.integers(n, size=n)].mean() for _ in range(draws)]
    return tuple(np.percentile(means, [2.5, 97.5]))


def points(score, identity, reference):
    """Course points of a score: 0 at IdentityModel's, 200 at BasicCNN's, linear between, and 50 more below that."""
    if score < reference:
        return 250.0
    return 200 * min(1, max(0, (identity - score) / (identity - reference)))


def place(score, identity):
    """Where the score would have been in 2023, in words, if these images were as hard as the ones of then."""
    comparable = score * LEADERBOARD_2023["IdentityModel"] / identity
    ranks = sorted((value, int(name[5:])) for name, value in LEADERBOARD_2023.items() if name.startswith("rank "))
    better = 0  # the last of the known ranks that is better than this score
    for value, rank in ranks:
        if comparable <= value:
            return str(rank) if rank == better + 1 else f"{better + 1} to {rank}"
        better = rank
    return f"below {better}"


GROUPS = {
    "block size": (0, ((4, 6), (7, 9), (10, 12), (13, 16)), "pixels"),
    "rectangle": (1, ((16, 127), (128, 255), (256, 511), (512, 1024)), "area in pixels"),
}


def evaluate(config, given, paths):
    """Print tables of the models' scores on images with truth, and draw them. Returns the exit status."""
    (networks, names, made_with), device, precision = load_models(config, given, paths)
    dataset, source = images_with_truth(config, given, made_with)
    if len(networks) > 1:
        networks, names = networks + [Ensemble(networks)], names + ["mean of these"]
    if os.path.exists(REFERENCE) and show(REFERENCE) not in names:
        (references, _, _), _, _ = load_models(config, set(), [REFERENCE])
        networks, names = networks + references, names + [show(REFERENCE)]
    if "IdentityModel" not in names:
        networks, names = networks + [IdentityModel().eval()], names + ["IdentityModel"]
    errors, geometry, seconds, sample = errors_per_image(networks, dataset, device, precision)
    scores = dict(zip(names, errors.mean(axis=1)))
    identity, reference = scores["IdentityModel"], scores.get(show(REFERENCE))

    width = max(map(len, names))
    print(f"\nOn {source}; {config.views} views. Score: mean RMSE on the unknown pixels, grey levels of 255")
    print(f"{'':{width}}  score   95 % interval  points  place in 2023  images/s")
    for name, row, taken in zip(names, errors, seconds):
        low, high = confidence_interval(row)
        worth = f"{points(scores[name], identity, reference):6.0f}" if reference else "     -"
        rank = place(scores[name], identity)
        print(
            f"{name:{width}} {scores[name]:6.3f} {low:6.3f} to {high:6.3f}  {worth}  {rank:>13}  "
            f"{len(dataset) / max(taken, 1e-9):8.0f}"
        )
    print(
        "Points: 200 at BasicCNN's score on these images, 50 more below it (the course gives 100 instead below its "
        "AdvancedModel, whose score is not published). Places: scaled by IdentityModel's score, then and here."
    )
    for group, (column, ranges, unit) in GROUPS.items():
        members = [(low <= geometry[:, column]) & (geometry[:, column] <= high) for low, high in ranges]
        print(f"\n{group:{width}} " + " ".join(f"{low}-{high}".rjust(8) for low, high in ranges) + f"  {unit}")
        print(f"{'images':{width}} " + " ".join(f"{member.sum():8,}" for member in members))
        for name, row in zip(names, errors):
            cells = (f"{row[member].mean():8.3f}" if member.any() else " " * 8 for member in members)
            print(f"{name:{width}} " + " ".join(cells))
    picture = config.file("losses", "_evaluation.png")
    plot_errors(errors, geometry, names, picture)
    samples = config.file("losses", "_evaluation_samples.png")
    plot_samples(*sample, samples)
    print(f"\nPictures: {show(picture)}; restorations by {names[0]}: {show(samples)}")
    return 0


def read_submission(path):
    """The arrays of a submission file, which may be compressed (zip, gzip, bz2, xz). Raises UserError."""
    try:
        with open(path, "rb") as file:
            opened = file
            start = file.read(6)
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                archive = zipfile.ZipFile(file)
                members = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
                if len(members) != 1:
                    raise ValueError(f"holds {len(members)} files, but must hold one")
                opened = archive.open(members[0])
            else:
                for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma)):
                    if start.startswith(magic):
                        opened = module.open(file)
            data = opened.read(MAX_SUBMISSION_BYTES + 1)
        if len(data) > MAX_SUBMISSION_BYTES:
            raise ValueError(f"is larger than {MAX_SUBMISSION_BYTES >> 20} MiB")
        return deserialize(io.BytesIO(data))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; name a submission file") from None
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: no submission file: {error}") from None


def score_submission(submission, targets):
    """Print the score of a submission against targets, a file of the same form, as the challenge's server does."""
    predictions, truth = read_submission(submission), read_submission(targets)
    if len(predictions) != len(truth):
        raise UserError(f"{submission}: has {len(predictions)} arrays, but {targets} has {len(truth)}")
    errors = []
    for i, (a, b) in enumerate(zip(predictions, truth)):
        if len(a) != len(b):
            raise UserError(f"{submission}: array {i} has {len(a)} pixels, but that of {targets} has {len(b)}")
        errors.append(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))
    low, high = confidence_interval(np.array(errors))
    print(f"score {np.mean(errors):.6f} on {len(errors):,} images (95 % interval {low:.3f} to {high:.3f})")
    return 0


# ------------------------------------------------------------------------------------------------ the challenge file


def predict(config, given, paths):
    """Write the challenge file for config.test_set, with the mean of several models where there are some."""
    (networks, _, _), device, precision = load_models(config, given, paths)
    network = networks[0] if len(networks) == 1 else Ensemble(networks)
    pixelated_images, known_arrays = load_test_set(config.test_set)
    started = time.monotonic()
    predictions = []
    with tqdm(total=len(pixelated_images), desc="restoring", unit=" images") as bar:
        for _, group in itertools.groupby(range(len(pixelated_images)), lambda i: pixelated_images[i].shape):
            group = list(group)  # neighbours of one size
            for first in range(0, len(group), BATCH):
                part = slice(group[first], group[min(first + BATCH, len(group)) - 1] + 1)
                batch = (
                    torch.from_numpy(np.stack(arrays[part])).to(device) for arrays in (pixelated_images, known_arrays)
                )
                predictions.extend(restore(network, *batch, precision).cpu().numpy())
                bar.update(part.stop - part.start)
    seconds = time.monotonic() - started
    submission = [prediction[~known] for prediction, known in zip(predictions, known_arrays)]
    for i, (prediction, image, known) in enumerate(zip(predictions, pixelated_images, known_arrays, strict=True)):
        if prediction.dtype != np.uint8 or not np.array_equal(prediction[known], image[known]):  # of another image?
            raise UserError(f"test_set: the prediction for image {i} does not fit it; nothing was written")
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


def make_test_set(config, given, folder):
    """Write folder/test_set.pkl in the challenge's form and its folder/targets.bin, for a rehearsal of the hand-in."""
    made_with = []
    for path in (config.file("models", ".pt"), SHIPPED):
        if os.path.exists(path):
            made_with.append(config_from_dict(load_checkpoint(path, "name a folder without it")["config"], path))
    dataset, source = images_with_truth(config, given, made_with)
    pixelated_images, known_arrays, targets, _ = zip(*(dataset[i] for i in range(len(dataset))))
    test_set, target_file = os.path.join(folder, "test_set.pkl"), os.path.join(folder, "targets.bin")
    data = {"pixelated_images": pixelated_images, "known_arrays": known_arrays}
    with atomic_write(test_set) as file:  # asarray: the cache's arrays are of a class of their own, np.memmap
        pickle.dump({key: tuple(map(np.asarray, arrays)) for key, arrays in data.items()}, file, 4)
    serialize([target.ravel() for target in targets], target_file)
    submission = os.path.join(folder, "submission.bin")
    paths = [shlex.quote(show(path)) for path in (test_set, submission, target_file)]
    chosen = [f"--{key} {shlex.quote(getattr(config, key))} " for key in ("name", "model") if key in given]
    print(
        f"Wrote {show(test_set)} and {show(target_file)}: {source}. The rehearsal:\n"
        f"python main.py --predict {''.join(chosen)}--test_set {paths[0]} --submission {paths[1]}\n"
        f"python main.py --score {paths[1]} {paths[2]}"
    )
    return 0


# ------------------------------------------------------------------------------------------------ pictures


def plot_losses(rows, loss, path):
    """The run's curve as a PNG: training loss, validation score and reference lines over samples.

    rows: as logged. loss: its kind; of "mse" the root is drawn.
    """
    power = 0.5 if loss == "mse" else 1
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    samples = [row["samples"] for row in rows]
    axes.plot(
        samples, [row["train_loss"] ** power for row in rows], "--", marker=".", color="0.5", label="training loss"
    )
    axes.plot(samples, [row["score"] for row in rows], marker="o", color="black", label="validation score")
    for value, style, label in (
        (rows[-1]["identity_score"], "-", "IdentityModel, same images"),
        (LEADERBOARD_2023["BasicCNN"], "-.", "BasicCNN, 2023"),
        (LEADERBOARD_2023["rank 1"], ":", "rank 1, 2023"),
    ):
        axes.axhline(value, linestyle=style, color="0.3", linewidth=1)
        axes.annotate(
            f"{label}: {value:.2f}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
    axes.set(xlabel="training samples", ylabel="grey levels (of 255); RMSE on the unknown pixels", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9))  # below the line of IdentityModel
    save_figure(figure, path)


def plot_samples(pixelated_images, known_arrays, predictions, images, path):
    """A sheet of restorations as a PNG, a row an image: truth, pixelated, what ResidualUNet starts from, prediction,
    error. All (N, 1, H, W) uint8, known_arrays bool.

    images None: the truth is unknown, and neither it nor the error is shown.
    """
    grid = BlockGrid(pixelated_images / 255, ~known_arrays, range(SIZE_RANGE[0], SIZE_RANGE[1] + 1))
    start = interpolate(pixelated_images / 255, grid.expected_means(pixelated_images / 255), grid) * 255
    columns = [("pixelated", pixelated_images), ("interpolation", start), ("prediction", predictions)]
    if images is not None:
        columns = [("truth", images), *columns, ("error, black 0, white 64 or more", None)]
        errors = rmse_per_image(predictions.double(), images.double(), known_arrays)
    figure = Figure(figsize=(2.2 * len(columns), 2.3 * len(predictions) + 0.3), layout="constrained")
    grid = figure.subplots(len(predictions), len(columns), squeeze=False)
    for i, row in enumerate(grid):
        for axes, (title, column) in zip(row, columns):
            shown = column[i, 0] if column is not None else (predictions[i, 0].int() - images[i, 0].int()).abs()
            axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=255 if column is not None else 64)
            axes.set(xticks=[], yticks=[], title=title if i == 0 else "")
            axes.title.set_fontsize(9)
        if images is not None:
            row[-1].set_xlabel(f"RMSE {errors[i]:.1f} grey levels", fontsize=8)
    save_figure(figure, path)


def plot_errors(errors, geometry, names, path):
    """Score by block size and by area as a PNG, a line per model. errors, geometry: as from errors_per_image."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = (
        ("block size in pixels", geometry[:, 0], np.arange(4, 18)),
        ("area of the rectangle in pixels", geometry[:, 1], [16, 64, 128, 192, 256, 384, 512, 640, 768, 1025]),
    )
    for axes, (label, column, edges) in zip(figure.subplots(1, 2, sharey=True), panels):
        members = [(low <= column) & (column < high) for low, high in itertools.pairwise(edges)]
        members = [member for member in members if member.any()]
        x = [column[member].mean() for member in members]
        for i, (name, row) in enumerate(zip(names, errors)):
            y = [row[member].mean() for member in members]
            color = str(0.6 * i / len(names))
            axes.plot(x, y, "--" if i % 2 else "-", marker="osv^Dx"[i % 6], color=color, label=name)
        axes.set(xlabel=label)
        axes.grid(color="0.9")
    figure.axes[0].set(ylabel="RMSE on the unknown pixels, grey levels")
    figure.axes[1].legend(fontsize=8)
    save_figure(figure, path)


def save_figure(figure, path):
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)


# ------------------------------------------------------------------------------------------------ the hand-in

HAND_IN = ("*.py", "README.md", "LICENSE", "requirements.txt", "config.json", ".gitignore", ".ci/run", "tests/*.py")
HAND_IN += ("losses/scaling.*", "losses/drawn_evaluation_samples.png")  # the README's pictures
LARGE_HAND_IN = 20e6  # bytes; course platforms refuse files some way above that


def archive(config, given, path):
    """Write the archive to hand in: source, configuration, documentation, the chosen model and its log, nothing else.

    Its bytes are a function of the files' contents alone.
    """
    model = config.model or config.file("models", ".pt")
    if not {"model", "name"} & given and config.model is None and not os.path.exists(model):
        model = SHIPPED
    load_checkpoint(model, "train one first with python main.py, or name one with --model FILE")
    folder, name = os.path.split(os.path.splitext(os.path.abspath(model))[0])
    files = {}
    for pattern in HAND_IN:
        for file in glob.glob(os.path.join(ROOT, *pattern.split("/")), include_hidden=True):
            files[os.path.relpath(file, ROOT).replace(os.sep, "/")] = file
    losses = os.path.join(os.path.dirname(folder), "losses")
    for place, start, suffixes in (("models", folder, (".pt", ".json")), ("losses", losses, (".csv", ".png"))):
        for suffix in suffixes:
            if os.path.exists(os.path.join(start, name + suffix)):
                files[f"{place}/{name}{suffix}"] = os.path.join(start, name + suffix)
    with atomic_write(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for entry, file in sorted(files.items()):
            info = zipfile.ZipInfo(entry)  # its time is 1980-01-01
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            with open(file, "rb") as opened:
                zipped.writestr(info, opened.read())
            print(f"{os.path.getsize(file):>12,} bytes  {entry}")
    size = os.path.getsize(path)
    print(f"Wrote {show(path)}: {len(files)} files, {size:,} bytes.")
    if size > LARGE_HAND_IN:
        print(f"warning: {show(path)} is larger than {LARGE_HAND_IN / 1e6:.0f} MB; ask whether that can be handed in")
    return 0


def show(path):
    """A path as the user would type it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on another drive
        return path
    return path if relative.startswith("..") else relative
