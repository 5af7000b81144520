"""Classification: the exercise on MNIST and Fashion-MNIST, and a predictor for pictures of the user's own."""

import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from architectures import ResidualCNN, SimpleCNN
from datasets import to_grayscale
from tasks import Action
from tasks.digits import SIDE, DigitsConfig, DigitsTask, random_matrices, warp
from tasks.evaluation import Measurement, load_models, plot_curves, plot_sheet, save_figure
from tasks.outputs import check_outputs
from tasks.own_photos import read_photo
from utils import ROOT, UserError, inherited, key, show

BATCH = 500  # images measured at once
SHEET = 24  # images on the sheet of mistakes
MAX_SHOWN = 48  # pictures that --predict draws
NETWORKS = {network.__name__: network for network in (ResidualCNN, SimpleCNN)}
NAMES = {
    "digits": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "clothes": tuple("T-shirt/top,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".split(",")),
}


@dataclass
class ClassificationConfig(DigitsConfig):
    """The keys of classification."""

    task: str = inherited("task", "classification")
    name: str = inherited("name", "classification")
    network: str = key("ResidualCNN", "the architecture", choices=tuple(NETWORKS))
    batch_size: int = inherited("batch_size", 256)
    learning_rate: float = inherited("learning_rate", 4e-3)
    labels: str = key(
        "auto",
        "what the classes are; auto: clothes where the path of the images has fashion in it, else digits",
        choices=("auto", *NAMES),
    )
    augment: bool = key(
        True, "train on images that are warped (digits) or mirrored (clothes), shifted, and partly hidden"
    )
    label_smoothing: float = key(
        0.0, "share of each label that is spread over all classes in training", minimum=0, maximum=0.5
    )
    views: int = key(
        10,
        "predictions to average, of the image shifted by a pixel (5) and, of clothes, mirrored (10); 1 is fastest",
        minimum=1,
        maximum=10,
        command=True,
    )


def augment(images, labels):
    """Random views of images, (N, 1, 28, 28) float in [0, 1], for training; the CPU's global generator draws them.

    labels: "digits" are turned, slanted, scaled and shifted; "clothes", whose mirror images are clothes too, are
    mirrored and shifted. Then a square of 8 pixels (digits: 4) of each is hidden (cutout, DeVries & Taylor 2017).
    """
    n = len(images)
    if labels == "clothes":
        matrices, hidden = random_matrices(n, 0, 0, 0, 2), 8
        matrices[:, :, 2] = (matrices[:, :, 2] * SIDE / 2).round() * 2 / SIDE  # whole pixels: nothing is blurred
        matrices[:, 0] *= torch.randint(2, (n, 1)) * 2 - 1
    else:
        matrices, hidden = random_matrices(n, 7, 0.1, 0.08, 2), 4
    images = warp(images, matrices.to(images.device), None, SIDE)
    position = torch.arange(SIDE)
    start = torch.randint(1 - hidden, SIDE, (2, n, 1))
    rows, columns = (start <= position) & (position < start + hidden)  # (N, 28) each
    return images.masked_fill((rows[:, :, None] & columns[:, None])[:, None].to(images.device), 0)


SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # rows and columns


def with_views(network, count, labels):
    """The network as a predictor: the mean of the logits for `count` views of its input. Clothes are mirrored too."""
    mirrored = (False, True) if labels == "clothes" else (False,)
    views = [(shift, mirror) for shift in SHIFTS for mirror in mirrored][:count]

    def predict(images):
        seen = (
            F.pad(images.flip(3) if mirror else images, (right, -right, down, -down)) for (down, right), mirror in views
        )
        return sum(network(view) for view in seen) / len(views)

    return predict


# ------------------------------------------------------------------------------------------------ own pictures


def opaque(pixels, alpha):
    """Grey values, (H, W) float64 in [0, 255], of a picture as tasks.own_photos.read_photo gives it.

    What is transparent becomes white, or black where what is drawn is light.
    """
    grey = (pixels[..., 0] if pixels.shape[2] == 1 else to_grayscale(pixels)[0]).astype(np.float64)
    if alpha is None or not alpha.any():
        return grey
    cover = alpha / 255
    return grey * cover + (1 - cover) * (0 if (grey * cover).sum() > 127.5 * cover.sum() else 255)


def normalize(grey, labels):
    """A picture as the networks know it: light on black, cut out, scaled and centred. Returns it and its polarity.

    grey: (H, W) in [0, 255]. Returns (28, 28) uint8, and whether the picture was dark on light: whether more of it is
    darker than its corners than lighter. A digit's longer side becomes 20 pixels and its centre of mass the middle, as
    LeCun et al. 1998 did it; clothes fill the image. Raises ValueError where nothing can be seen.
    """
    height, width = grey.shape
    side = max(1, min(height, width) // 14)
    ends = (slice(side), slice(-side, None))
    difference = grey - np.median([grey[rows, columns] for rows in ends for columns in ends])
    dark_on_light = bool(np.maximum(-difference, 0).sum() > np.maximum(difference, 0).sum())
    ink = np.maximum(-difference if dark_on_light else difference, 0)
    strongest = max(np.percentile(ink, 99.8), ink.max() / 2)  # a speck of dust is not to decide
    if strongest < 8:
        raise ValueError("shows nothing: all of it is as light as its corners")
    if labels == "digits":
        ink = ink / strongest * 255
    visible = ink > (0.2 if labels == "digits" else 0.05) * ink.max()  # clothes have dark parts, paper has shades
    rows, columns = (np.flatnonzero(visible.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = (20 if labels == "digits" else SIDE) / max(ink.shape)
    size = [max(1, round(length * scale)) for length in ink.shape[::-1]]
    ink = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 255)
    start = []
    for axis, length in enumerate(ink.shape):
        # MNIST's centres of mass lie in pixel 14, counted from 0; clothes are centred by their extent.
        middle = np.average(np.arange(length), weights=ink.sum(1 - axis)) if labels == "digits" else (length - 1) / 2
        start.append(min(max(0, round((14 if labels == "digits" else 13.5) - middle)), SIDE - length))
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    canvas[start[0] : start[0] + ink.shape[0], start[1] : start[1] + ink.shape[1]] = ink.round()
    return canvas, dark_on_light


@torch.inference_mode()
def probabilities(predict, images, precision):
    """The probabilities of the classes, (N, classes) float32, for (N, 1, 28, 28) uint8 images."""
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        return predict(images.float() / 255).float().softmax(1)


def predict_pictures(task, given, paths):
    """--predict: print the class of each picture, a line each, and draw them with their labels."""
    sheet = task.config.file("losses", "_predictions.png")
    check_outputs([(sheet, "picture")], paths)
    (model, *_), device, precision = load_models(task, given, [])
    kind = model.config.labels
    pictures = [opaque(*read_photo(path)[:2]) for path in paths]
    seen = []
    for path, grey in zip(paths, pictures):
        try:
            seen.append(normalize(grey, kind))
        except ValueError as error:
            raise UserError(f"{path}: {error}; name a picture of one of the {kind}") from None
    images, dark_on_light = zip(*seen)
    likely = probabilities(model.predict, torch.from_numpy(np.stack(images))[:, None].to(device), precision).cpu()
    first, second = likely.topk(2).indices.T.tolist()
    for i, path in enumerate(paths):
        polarity = "dark on light" if dark_on_light[i] else "light on dark"
        print(
            f"{path}: label {first[i]} ({NAMES[kind][first[i]]}), probability {likely[i, first[i]]:.3f}; "
            f"runner-up {second[i]}, {likely[i, second[i]]:.3f}; {polarity}"
        )
    titles = [f"{k} ({NAMES[kind][k]}), {row[k]:.3f}" for k, row in zip(first, likely)]
    shown = [picture for pair in zip(pictures, images) for picture in pair][: 2 * MAX_SHOWN]
    plot_grid(shown, [text for title in titles for text in (title, "as the network sees it")], sheet)
    print(f"Pictures with their labels{f' (the first {MAX_SHOWN})' if len(paths) > MAX_SHOWN else ''}: {show(sheet)}")
    return 0


# ------------------------------------------------------------------------------------------------ drawing


def plot_grid(images, titles, path, columns=6):
    """Grey images, (H, W) in [0, 255], with a title each, as a PNG."""
    cells = [(image, title, "") for image, title in zip(images, titles)]
    plot_sheet([cells[i : i + columns] for i in range(0, len(cells), columns)], path)


def plot_confusion(labels, predictions, names, title, path):
    """How many images of each class got which label, as a PNG. labels, predictions: (N,) ints."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares**0.5, cmap="Greys", vmin=0, vmax=1)  # the root, so that rare mistakes can be seen
    ticks = range(len(names))
    for i in ticks:
        for j in ticks:
            axes.text(
                j, i, f"{counts[i, j]}", ha="center", va="center", color=("black", "white")[int(shares[i, j] > 0.3)]
            )
    axes.set(xticks=ticks, yticks=ticks, yticklabels=names, xlabel="label given", ylabel="true class", title=title)
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    save_figure(figure, path)


# ------------------------------------------------------------------------------------------------ the task


class Classification(DigitsTask):
    """Tell which of ten classes an image shows. A batch: images, (N, 1, 28, 28) uint8, and labels, (N,) int64."""

    Config = ClassificationConfig
    summary = "tell digits (MNIST) or clothes (Fashion-MNIST) apart, in pictures of your own too"
    networks = NETWORKS
    scores = ("accuracy",)
    higher_is_better = True
    shipped = os.path.join(ROOT, "models", "MNIST.pt")
    actions = {"predict": Action("+", "PICTURE", "tell what pictures show, and draw them labelled", predict_pictures)}

    def __init__(self, config):
        super().__init__(config)
        if config.labels == "auto":
            config.labels = "clothes" if "fashion" in config.images.lower() else "digits"

    def dataset(self, images, labels, training):
        return TensorDataset(torch.tensor(images)[:, None], torch.from_numpy(labels))

    def loss(self, name, parts, batch):
        """The cross-entropy; the log has the accuracy in per cent too, both on images as augmented."""
        images, labels = batch[0].float() / 255, batch[1]
        logits = parts[name](augment(images, self.config.labels) if self.config.augment else images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        accuracy = 100 * (logits.argmax(1) == labels).double().mean()
        return {"train_loss": loss, "train_accuracy": accuracy}, len(labels)

    def batches(self, network, start):
        for batch in super().batches(network, start):
            yield [index for _, index in batch]

    # ---------------------------------------------------------------------------------------------- measuring

    def predictor(self, network, made):
        return with_views(network, self.config.views, made.labels)

    def measure(self, predictors, dataset, device, precision):
        """details: (N, 2), the class and the label that the first predictor gave."""
        images, labels = dataset.tensors
        seconds, right, likely = np.zeros(len(predictors)), [], None
        for i, predict in enumerate(predictors):
            seconds[i] -= time.perf_counter()
            rows = torch.cat([probabilities(predict, part.to(device), precision).cpu() for part in images.split(BATCH)])
            seconds[i] += time.perf_counter()
            right.append(100.0 * (rows.argmax(1) == labels).double())
            likely = rows if likely is None else likely
        confidence, predictions = likely.max(1)
        wrong = predictions != labels
        # The most confident mistakes, and where there are fewer, the least confident of what is right.
        order = torch.argsort(torch.where(wrong, 1 + confidence, 1 - confidence), descending=True)[:SHEET]
        sample = [values[order] for values in (images, labels, predictions, confidence)]
        details = torch.stack([labels, predictions], 1).numpy()
        return Measurement({"accuracy": torch.stack(right).numpy()}, seconds, sample, details)

    def reference(self, row):
        return f"{row['train_accuracy']:.2f} in training"

    def evaluation_set(self, given, models):
        dataset, source = super().evaluation_set(given, models)
        return dataset, f"{source}. Accuracy in per cent"

    def report(self, models, measured):
        path = self.config.file("losses", "_evaluation_confusion.png")
        names = [f"{i} {name}" for i, name in enumerate(NAMES[self.config.labels])]
        plot_confusion(*measured.details.T, names, models[0].name, path)
        return [path, *super().report(models, measured)]

    # ---------------------------------------------------------------------------------------------- drawing

    def plot_log(self, rows, path):
        epochs = [row["epoch"] for row in rows]
        curves = {
            "training, augmented": (epochs, [row["train_accuracy"] for row in rows]),
            "validation": (epochs, [row["accuracy"] for row in rows]),
        }
        loss = {"training": (epochs, [row["train_loss"] for row in rows])}
        plot_curves([("accuracy in per cent", curves, {}), ("cross-entropy", loss, {"yscale": "log"})], path)

    def plot_samples(self, sample, path):
        """A sheet of the most confident mistakes. sample: images, classes, labels given, their probabilities."""
        images, labels, predictions, confidence = sample
        names = NAMES[self.config.labels]
        titles = [
            f"{names[k]}, {p:.3f}" + (f"\ntruth: {names[label]}" if k != label else "\nright")
            for label, k, p in zip(labels.tolist(), predictions.tolist(), confidence.tolist())
        ]
        plot_grid(images[:, 0].numpy(), titles, path)

    def pictures(self, sample):
        return {"the most confident mistakes": sample[0]}


TASK = Classification
