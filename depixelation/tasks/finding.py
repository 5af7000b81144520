"""Finding: locate the pixelated areas of photos, and their blocks, for --depixelate to restore."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from depixelation.engine.measuring import Measurement
from depixelation.engine.models import Model
from depixelation.engine.options import EvaluateOptions
from depixelation.engine.predictor import Predictor
from depixelation.engine.task import Task
from depixelation.figures.areas import outline_areas
from depixelation.figures.curves import column_panels
from depixelation.images.holdout import content_digest, held_out_digests, image_source, images_with_truth
from depixelation.mosaics.finder import Finder, FlatFinder, MosaicNet
from depixelation.mosaics.making import FORMATS, MosaicCrops, MosaicPhotos
from utils import ROOT, Config, inherited, key

FOUND = 0.7  # an area counts as found from this intersection over union on
BLOCKS = ((2, 6), (6, 12), (12, 24), (24, 97))  # sides in pixels, by which --evaluate groups them
SENSITIVITY = key(0.5, "of the finder, 0 to 1; higher finds more, also false areas", minimum=0.01, maximum=0.99)


@dataclass(frozen=True)
class FindingConfig(Config):
    """The keys of finding."""

    task: str = inherited("task", "finding")
    name: str = inherited("name", "finding")
    network: str = key("MosaicNet", "the architecture", choices=("MosaicNet",))
    crops: int = key(8000, "training pictures per epoch; the photos take turns", minimum=1, maximum=10**7)
    pictures: int = key(200, "pictures to measure on", minimum=4, maximum=10**5)
    batch_size: int = inherited("batch_size", 16)
    learning_rate: float = inherited("learning_rate", 1.5e-3)
    gradient_clip: float = inherited("gradient_clip", 4.0)  # larger ones, from a few strange pictures, do harm
    synthetic_images: int = inherited("synthetic_images", 2000)


@dataclass(frozen=True)
class FindingEvaluateOptions(EvaluateOptions):
    """Options of --evaluate: the sensitivity, too."""

    sensitivity: float = SENSITIVITY


def losses_of(cells, covered, grids, averages, weights):
    """(cross entropy of being in an area; inside areas, smooth L1 of distances and sides, in octaves, plus cross
    entropy of averages). cells: MosaicNet's output; the others: batches from MosaicCrops."""
    cells = cells.float()
    found = (F.binary_cross_entropy_with_logits(cells[:, :1], covered, reduction="none") * weights).mean()
    inside = averages >= 0
    if not inside.any():
        return found, cells.sum() * 0
    cells, weights = cells.movedim(1, -1)[inside], weights[:, 0][inside]
    off = F.smooth_l1_loss(cells[:, 1:7], grids.movedim(1, -1)[inside], beta=0.1, reduction="none").mean(dim=1)
    averages = F.cross_entropy(cells[:, 7:], averages[inside], reduction="none")
    return found, ((off + 0.05 * averages) * weights).sum() / weights.sum()


class Finding(Task):
    """Find pixelated areas. A batch: the tensors of MosaicCrops, (N, 1, 256, 256) uint8 and so on."""

    Config = FindingConfig
    EvaluateOptions = FindingEvaluateOptions
    summary = "find the pixelated areas of photos, for --depixelate"
    networks = {"MosaicNet": MosaicNet}
    scores = ("f1", "found", "false", "size_error")
    higher_is_better = True
    shipped = os.path.join(ROOT, "models", "finder.pt")

    def example_input(self):
        return torch.zeros(1, 1, 64, 64)

    def prepare(self):
        config = self.config
        cache, train_indices, validation_indices = image_source(config, colour=True)
        self.held_out = held_out_digests(cache, train_indices, validation_indices)
        self.content = content_digest(cache)
        self.training_set = MosaicCrops(cache, train_indices, config.seed, config.crops, config.max_images)
        self.validation_set = MosaicPhotos(cache, validation_indices, config.pictures)

    def loss(self, learner, batch):
        luma, *truth = batch
        found, grids = losses_of(learner(luma.float() / 255), *truth)
        return {"train_loss": found + 0.5 * grids, "mask_loss": found}, len(luma)

    # ---------------------------------------------------------------------------------------------- measuring

    def predictor(self, network, trained_with, precision, options):
        """A Finder. options: with a sensitivity."""
        return Finder(Predictor(network, next(network.parameters()).device, precision), True, options.sensitivity)

    def validate(self, predictor, images=None):
        return super().validate(Finder(predictor), images)

    def measure(self, predictors, dataset, keep_outputs=False):
        """figures: per picture, F1 (1 without true and found areas), share of areas found (1 without true areas), false
        areas, mean relative error of the blocks' sides (0 without found areas). details: a row for each area of all
        pictures: index of the format, mean side of its blocks, and for each finder whether it found the area.

        predictors: Finders.
        """
        rows, sample, areas_of_all = [], [], []
        started = [finder.seconds for finder in predictors]
        for i in tqdm(range(len(dataset)), desc="validation", unit=" pictures", leave=False):
            pixels, truth, file = dataset[i]
            row, hits = [], []
            for k, finder in enumerate(predictors):
                areas = finder(pixels)
                figures, hit = compare_areas(areas, truth)
                row.append(figures)
                hits.append(hit)
                if k == 0 and len(sample) < 8:
                    sample.append((pixels, truth, areas))
            rows.append(row)
            for n, area in enumerate(truth):
                side = (area.block_width + area.block_height) / 2
                areas_of_all.append([list(FORMATS).index(file), side, *(hit[n] for hit in hits)])
        figures = {name: np.array([[cell[j] for cell in row] for row in rows]).T for j, name in enumerate(self.scores)}
        seconds = [finder.seconds - before for finder, before in zip(predictors, started)]
        return Measurement(figures, seconds, sample, np.array(areas_of_all))

    def reference(self, row):
        return (
            f"{row['found']:.1%} found, {row['false']:.3f} false areas per picture, "
            f"sizes off by {row['size_error']:.1%}"
        )

    # ---------------------------------------------------------------------------------------------- --evaluate

    def evaluation_set(self, models, options):
        cache, indices, source = images_with_truth(self.config, options, models, colour=True)
        count = self.config.pictures
        return MosaicPhotos(cache, indices, count), f"{count} pictures made of {source}; found: IoU of {FOUND} or more"

    def compared(self, models, device, precision):
        trained = [model for model in models if model.trained_with]
        alone = [
            Model(f"{model.name}, no fit", Finder(model.predictor.predictor, False, model.predictor.sensitivity))
            for model in trained
        ]
        return [*models, *alone, Model("no network", FlatFinder())]

    def report(self, models, measured):
        width = max(len(model.name) for model in models)
        details = measured.details
        groups = [(name, details[:, 0] == i) for i, name in enumerate(FORMATS)]
        groups += [(f"{a} to {b} px", (a <= details[:, 1]) & (details[:, 1] < b)) for a, b in BLOCKS]
        print(f"\n{'share of areas found':{width}} " + " ".join(f"{name:>14}" for name, _ in groups))
        print(f"{'areas':{width}} " + " ".join(f"{members.sum():14,}" for _, members in groups))
        for k, model in enumerate(models):
            cells = (f"{details[members, 2 + k].mean():14.1%}" if members.any() else " " * 14 for _, members in groups)
            print(f"{model.name:{width}} " + " ".join(cells))
        return {}

    # ---------------------------------------------------------------------------------------------- what is drawn

    def log_panels(self, rows):
        columns = (
            ("train_loss", "training loss"),
            ("found", "share of areas found"),
            ("false", "false areas per picture"),
        )
        return column_panels(rows, columns)

    def sample_sheet(self, sample):
        """Pictures with their true areas outlined in white and the found ones in black."""
        cells = [(outline_areas(pixels, truth, areas), "", "") for pixels, truth, areas in sample]
        return [cells[:4], cells[4:]] if len(cells) > 4 else [cells]


def compare_areas(areas, truth):
    """((F1, share found, false, error of size), [1 or 0 for each true area]) of the Areas found in one picture."""
    left, hits, errors = list(areas), [], []
    for area in truth:
        best = max(left, key=area.overlap, default=None)
        hit = best is not None and area.overlap(best) >= FOUND
        hits.append(int(hit))
        if hit:
            left.remove(best)
            pairs = ((best.block_width, area.block_width), (best.block_height, area.block_height))
            errors += [abs(a / b - 1) for a, b in pairs]
    total = len(areas) + len(truth)
    f1 = 2 * sum(hits) / total if total else 1.0
    return (
        f1,
        sum(hits) / len(hits) if hits else 1.0,
        float(len(left)),
        float(np.mean(errors)) if errors else 0.0,
    ), hits


TASK = Finding
