"""Classification: the exercise on MNIST and Fashion-MNIST. Tell which of ten classes an image shows."""

import os
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from architectures import ResidualCNN, SimpleCNN
from depixelation.engine.measuring import Measurement
from depixelation.figures.classes import plot_confusion
from depixelation.figures.curves import Panel
from depixelation.figures.sheets import grid_rows
from depixelation.images.digits import NAMES, SIDE, DigitsConfig, DigitsTask, random_matrices, warp
from utils import ROOT, inherited, key

BATCH = 500  # images measured at once
SHEET = 24  # images on the sheet of mistakes
NETWORKS = {network.__name__: network for network in (ResidualCNN, SimpleCNN)}


@dataclass(frozen=True)
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

    def completed(self):
        """With the labels that auto means."""
        found = "clothes" if "fashion" in self.images.lower() else "digits"
        return replace(self, labels=found) if self.labels == "auto" else self


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


class Classification(DigitsTask):
    """Tell which of ten classes an image shows. A batch: images, (N, 1, 28, 28) uint8, and labels, (N,) int64."""

    Config = ClassificationConfig
    summary = "tell digits (MNIST) or clothes (Fashion-MNIST) apart, in pictures of your own too"
    networks = NETWORKS
    scores = ("accuracy",)
    higher_is_better = True
    default_views = most_views = 10
    next_command = "--task classification --predict PICTURE"
    shipped = os.path.join(ROOT, "models", "MNIST.pt")

    def dataset(self, images, labels, training):
        return TensorDataset(torch.tensor(images)[:, None], torch.from_numpy(labels))

    def loss(self, learner, batch):
        """The cross-entropy; the log has the accuracy in per cent too, both on images as augmented."""
        images, labels = batch[0].float() / 255, batch[1]
        logits = learner(augment(images, self.config.labels) if self.config.augment else images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        accuracy = 100 * (logits.argmax(1) == labels).double().mean()
        return {"train_loss": loss, "train_accuracy": accuracy}, len(labels)

    def batches(self, network, start):
        for batch in super().batches(network, start):
            yield [index for _, index in batch]

    # ---------------------------------------------------------------------------------------------- measuring

    def views(self, network, count, trained_with):
        """Clothes are mirrored, too; digits are not."""
        return [view for view in network.VIEWS if trained_with.labels == "clothes" or not view[2]][:count]

    def measure(self, predictors, dataset, keep_outputs=False):
        """details: (N, 2), the class and the label that the first predictor gave."""
        images, labels = dataset.tensors
        started, right, likely = [predictor.seconds for predictor in predictors], [], None
        for predictor in predictors:
            rows = torch.cat([probabilities(predictor, part) for part in images.split(BATCH)])
            right.append(100.0 * (rows.argmax(1) == labels).double())
            likely = rows if likely is None else likely
        confidence, predictions = likely.max(1)
        wrong = predictions != labels
        # The most confident mistakes, and where there are fewer, the least confident of what is right.
        order = torch.argsort(torch.where(wrong, 1 + confidence, 1 - confidence), descending=True)[:SHEET]
        sample = [values[order] for values in (images, labels, predictions, confidence)]
        details = torch.stack([labels, predictions], 1).numpy()
        seconds = [predictor.seconds - before for predictor, before in zip(predictors, started)]
        return Measurement({"accuracy": torch.stack(right).numpy()}, seconds, sample, details)

    def reference(self, row):
        return f"{row['train_accuracy']:.2f} in training"

    # ---------------------------------------------------------------------------------------------- --evaluate

    def evaluation_set(self, models, options):
        dataset, source = self.test_part()
        return dataset, f"{source}. Accuracy in per cent"

    def report(self, models, measured):
        names = [f"{i} {name}" for i, name in enumerate(NAMES[self.config.labels])]
        return {"_confusion": partial(plot_confusion, *measured.details.T, names, models[0].name)}

    # ---------------------------------------------------------------------------------------------- what is drawn

    def log_panels(self, rows):
        epochs = [row["epoch"] for row in rows]
        curves = {
            "training, augmented": (epochs, [row["train_accuracy"] for row in rows]),
            "validation": (epochs, [row["accuracy"] for row in rows]),
        }
        loss = {"training": (epochs, [row["train_loss"] for row in rows])}
        return [Panel("accuracy in per cent", curves), Panel("cross-entropy", loss, {"yscale": "log"})]

    def sample_sheet(self, sample):
        """The most confident mistakes. sample: images, classes, labels given, their probabilities."""
        images, labels, predictions, confidence = sample
        names = NAMES[self.config.labels]
        titles = [
            f"{names[k]}, {p:.3f}" + (f"\ntruth: {names[label]}" if k != label else "\nright")
            for label, k, p in zip(labels.tolist(), predictions.tolist(), confidence.tolist())
        ]
        return grid_rows(images[:, 0].numpy(), titles)

    def pictures(self, sample):
        return {"the most confident mistakes": sample[0]}


def probabilities(predictor, images):
    """The probabilities of the classes, (N, classes) float32, for (N, 1, 28, 28) uint8 images."""
    return predictor(images.float() / 255).cpu().softmax(1)


TASK = Classification
