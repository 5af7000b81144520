"""Depixelation: the challenge of JKU Linz. One rectangle of a 64x64 grayscale photo was replaced by block means."""

import os
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from architectures import (
    BasicCNN,
    DeePixV1,
    EquivariantUNet,
    IdentityModel,
    OddUNet,
    ResidualUNet,
    find_block_sizes,
)
from datasets import IMAGE_SIZE, SIZE_RANGE, CachedPixelationDataset, collate
from processes import choose_device
from tasks import challenge, own_photos
from tasks.adversarial import Adversarial, AdversarialConfig
from tasks.evaluation import Measurement, Model, load_model, load_network, mean_of, training_record
from tasks.images import held_out_digests, image_source, images_with_truth
from tasks.mosaics import AVERAGES, GRIDS
from tasks.outputs import file_digest
from tasks.realism import plot_tradeoff, print_realism
from tasks.refining import Refined, plot_possible, with_refined, with_refiner
from tasks.restoration import (
    BATCH,
    LEADERBOARD_2023,
    mse_per_image,
    plot_errors,
    plot_losses,
    plot_samples,
    restore,
    rmse_per_image,
    to_inputs,
)
from utils import ROOT, UserError, key

REFERENCE = os.path.join(ROOT, "models", "BasicCNN.pt")  # its score is worth 200 points
NETWORKS = (OddUNet, EquivariantUNet, ResidualUNet, DeePixV1, BasicCNN, IdentityModel)
NETWORKS = {network.__name__: network for network in NETWORKS}


def _crop_scale(value):
    numbers = len(value) == 2 and all(type(x) in (int, float) for x in value)
    return None if numbers and 0 < value[0] <= value[1] <= 1 else "two numbers, 0 < smallest <= largest <= 1"


def _area(value):
    numbers = len(value) % 4 == 0 and len(value) and all(type(x) is int and x >= 0 for x in value)
    return None if numbers else "four whole numbers for each area: x, y, width, height"


FLAG = {"nargs": "?", "const": "true"}  # an option that may stand without a value


@dataclass
class DepixelationConfig(AdversarialConfig):
    """The keys of the challenge."""

    network: str = key("OddUNet", "the architecture", choices=tuple(NETWORKS))
    loss: str = key("rmse", "rmse, the challenge's score, or mse, both on the unknown pixels", choices=("rmse", "mse"))
    crop_scale: list = key(
        [0.7, 1.0],
        "side of the random crops, smallest and largest, as a share of the photo's shortest side",
        check=_crop_scale,
    )
    teacher: str | None = key(
        None,
        "a model whose predictions are learned beside the truth (distillation)",
        path=True,
        may_change=True,
    )
    teacher_share: float = key(
        0.5, "the teacher's share of the loss, 1: the teacher alone; the sum is doubled", minimum=0.01, maximum=1
    )
    views: int = key(
        8,
        "predictions to average, of the image flipped and transposed (ResidualUNet; other networks use one)",
        minimum=1,
        maximum=8,
        command=True,
    )
    samples: int | None = key(
        None,
        "with --predict, --depixelate and --realism: draw this many possible originals, and how far they differ",
        minimum=2,
        maximum=100,
        command=True,
    )
    test_set: str = key("test_set.pkl", "the challenge's test pickle", path=True, command=True)
    submission: str = key("submission.bin", "the challenge file that --predict writes", path=True, command=True)
    area: list | None = key(
        None,
        "x, y, width and height of an area of your photos, in pixels; may be given several times",
        argparse={"nargs": 4, "action": "append"},
        check=_area,
        command=True,
    )
    sensitivity: float = key(
        0.5,
        "of --depixelate, 0 to 1: higher finds more areas, false ones too",
        minimum=0.01,
        maximum=0.99,
        command=True,
    )
    output: str | None = key(None, "the folder for photos that are written; none: beside each", path=True, command=True)
    overwrite: bool = key(False, "restore photos again that have a result", argparse=FLAG, command=True)
    preview: bool = key(False, "only draw what was found into the photo", argparse=FLAG, command=True)
    json: bool = key(
        False, "print what was found as JSON, a line for each photo that is restored", argparse=FLAG, command=True
    )
    block_size: int | None = key(
        None,
        "side of the blocks that --pixelate makes, in pixels; none: an eighth of the area's shorter side",
        minimum=2,
        maximum=10**6,
        command=True,
    )
    grid: str = key("rectangle", "where the blocks of --pixelate begin", choices=GRIDS, command=True)
    average: str = key(
        "srgb", "how --pixelate averages a block; center: its middle pixel", choices=AVERAGES, command=True
    )
    quality: int | None = key(
        None, "JPEG quality for --pixelate; none: write a PNG", minimum=1, maximum=100, command=True
    )


# ------------------------------------------------------------------------------------------------ loss and points


def training_loss(kind, predictions, images, known_arrays):
    """In grey levels (of 255). rmse: mean over images of the RMSE; mse: mean over all unknown pixels, squared levels.

    predictions and images: (N, 1, H, W) float in [0, 1]; known_arrays: bool, False where the loss is taken. Returns the
    loss and the number of images or pixels that it is the mean of.
    """
    if kind == "mse":
        loss, count = F.mse_loss(predictions[~known_arrays] * 255, images[~known_arrays] * 255), (~known_arrays).sum()
        return loss, count
    # The root has no gradient at 0; 1e-8 is (0.03 grey levels)^2.
    losses = 255 * (mse_per_image(predictions, images, known_arrays) + 1e-8).sqrt()
    return losses.mean(), len(losses)


def distillation_loss(predictions, taught, images, known_arrays):
    """By how much the score exceeds a teacher's, in grey levels (of 255): the mean over images of D^2 / (2 RMSE).

    D^2: the mean squared difference from what the teacher predicts, `taught`. Where that is the mean of all that is
    possible given the input, D^2 adds to the squared error, and this is how much it adds to the RMSE, to first order;
    the gradient is the score's without the noise of the truths (Hinton et al. 2015, arXiv:1503.02531, distil
    classifiers). RMSE: that of the predictions, one grey level at least. The arguments are those of mse_per_image.
    """
    errors = mse_per_image(predictions.detach(), images, known_arrays).sqrt().clamp(min=1 / 255)
    return (255 * mse_per_image(predictions, taught, known_arrays) / (2 * errors)).mean()


def points(score, identity, reference):
    """Course points of a score: 0 at IdentityModel's, 200 at BasicCNN's, linear between, and 50 more below that."""
    if score < reference:
        return 250.0
    return 200 * min(1, max(0, (identity - score) / (identity - reference)))


def place_in_2023(score, identity):
    """Where the score would have been in 2023, in words, if these images were as hard as the ones of then."""
    comparable = score * LEADERBOARD_2023["IdentityModel"] / identity
    ranks = sorted((value, int(name[5:])) for name, value in LEADERBOARD_2023.items() if name.startswith("rank "))
    better = 0  # the last of the known ranks that is better than this score
    for value, rank in ranks:
        if comparable <= value:
            return str(rank) if rank == better + 1 else f"{better + 1} to {rank}"
        better = rank
    return f"below {better}"


# ------------------------------------------------------------------------------------------------ the task


def random_symmetry(network):
    """The keyword argument by which a network sees a batch in a random symmetry, where it knows them."""
    known = getattr(network, "SYMMETRIES", None)
    return {"symmetries": torch.randint(len(known), (1,)).tolist()} if known else {}


def first_symmetries(network, count):
    """The keyword argument by which a network averages its predictions in `count` symmetries, where it knows them."""
    return {"symmetries": network.SYMMETRIES[:count]} if hasattr(network, "SYMMETRIES") else {}


GROUPS = {  # how --evaluate splits the score: (column of a Measurement's details, ranges, unit)
    "block size": (0, ((4, 6), (7, 9), (10, 12), (13, 16)), "pixels"),
    "rectangle": (1, ((16, 127), (128, 255), (256, 511), (512, 1024)), "area in pixels"),
}


class Depixelation(Adversarial):
    """Predict the original pixels of the rectangle. A batch: pixelated images, known arrays, images, (N, 1, 64, 64)."""

    Config = DepixelationConfig
    summary = "restore the pixelated rectangle of 64x64 grayscale photos (the challenge)"
    networks = NETWORKS
    shipped = os.path.join(ROOT, "models", "photos.pt")
    refiner = os.path.join(ROOT, "models", "flow.pt")
    actions = challenge.ACTIONS | own_photos.ACTIONS
    collate = staticmethod(collate)
    groups = GROUPS
    teacher = None  # the network that is learned from

    def example_input(self):
        """With the challenge's largest rectangle; smaller ones may take fewer FLOPs."""
        inputs = torch.ones(1, 2, IMAGE_SIZE, IMAGE_SIZE)
        inputs[:, 1, 16:48, 16:48] = 0
        return inputs

    def build_parts(self):
        path = getattr(self.config, "teacher", None)
        if path:
            if self.config.adversarial or self.config.loss != "rmse":
                raise UserError("teacher: teaches the score, so it goes with --loss rmse and without --adversarial")
            task, device = type(self)(type(self).Config()), choose_device(self.config.device)
            self.teacher, _, checkpoint = load_network(task, path, set(), device, "--teacher")
            self.teacher.requires_grad_(False)
            self.inherited, self.sources = training_record(checkpoint), {"teacher": file_digest(path)}
        return super().build_parts()

    def prepare(self):
        config = self.config
        cache, train_indices, validation_indices = image_source(config)
        self.held_out = held_out_digests(cache, train_indices, validation_indices)
        self.training_set = CachedPixelationDataset(
            cache, train_indices, config.seed, config.crop_scale, config.max_images
        )
        self.validation_set = CachedPixelationDataset(cache, validation_indices, seed=0)  # the same in every run

    def batches(self, network, start):
        return self.training_set.batches(self.config.batch_size, start, getattr(network, "window_side", None))

    def loss(self, name, parts, batch):
        if name == "discriminator":
            return self.tell_apart(parts[name])
        pixelated_images, known_arrays, images = batch
        inputs = to_inputs(pixelated_images, known_arrays)  # (N, 2, 64, 64)
        part = parts[name]
        predictions = part(inputs, **random_symmetry(part.network))  # (N, 1, 64, 64)
        truth, unknown = images.float() / 255, (~known_arrays).float()
        loss, count = training_loss(self.config.loss, predictions, truth, known_arrays)
        if self.teacher is None:
            return self.deceive(parts, loss, predictions, truth, inputs, unknown), count
        with torch.no_grad(), part.autocast(inputs):  # in another symmetry: what is learned is the mean over them
            taught = self.teacher(inputs, **random_symmetry(self.teacher)).float()
        distilled, share = distillation_loss(predictions, taught, truth, known_arrays), self.config.teacher_share
        mixed = 2 * ((1 - share) * loss + share * distilled)
        return {"train_loss": mixed, "own_loss": loss, "distillation_loss": distilled}, count

    # ---------------------------------------------------------------------------------------------- measuring

    def predictor(self, network, made):
        """The mean over symmetries of the input, where the network knows them and was not trained to look real."""
        views = 1 if made.adversarial else self.config.views  # a mean of several looks less real
        return partial(network, **first_symmetries(network, views))

    def baselines(self):
        return {"IdentityModel": IdentityModel().eval()}

    def measure(self, predictors, dataset, device, precision):
        """details: (N, 2), the block size, as it can be recovered, and the rectangle's area in pixels."""
        errors, geometry, sample, seconds, outputs = [], [], [], np.zeros(len(predictors)), []
        wanted = set(range(0, len(dataset), max(1, len(dataset) // 8)))
        position = 0
        loader = DataLoader(dataset, BATCH, collate_fn=collate, generator=torch.Generator())  # not the global one
        for batch in tqdm(loader, desc="validation", unit=" batches", leave=False):
            pixelated_images, known_arrays, images = (t.to(device) for t in batch)
            rows, kept = [], []
            for i, predict in enumerate(predictors):
                seconds[i] -= time.perf_counter()
                predictions = restore(predict, pixelated_images, known_arrays, precision).cpu()
                seconds[i] += time.perf_counter()
                rows.append(rmse_per_image(predictions.double(), batch[2].double(), batch[1]))
                kept.append(predictions)
                if i == 0:
                    chosen = [k for k in range(len(images)) if position + k in wanted]
                    sample.append([t[chosen] for t in (batch[0], batch[1], predictions, batch[2])])
            errors.append(torch.stack(rows))
            if getattr(self.config, "realism", 0):
                outputs.append([*batch, *kept])
            unknown = ~batch[1][:, 0]
            sizes = find_block_sizes(batch[0][:, 0], unknown, range(SIZE_RANGE[0], SIZE_RANGE[1] + 1))
            geometry.append(torch.stack([sizes, unknown.sum((1, 2))], dim=1))
            position += len(images)
        sample = [torch.cat(tensors)[:8] for tensors in zip(*sample)]
        figures = {"score": torch.cat(errors, dim=1).numpy()}
        outputs = [torch.cat(tensors) for tensors in zip(*outputs)]
        return Measurement(figures, seconds, sample, torch.cat(geometry).numpy(), outputs)

    def validate(self, network, device, precision):
        measured = self.measure([network, IdentityModel()], self.validation_set, device, precision)
        score, identity_score = measured.figures["score"].mean(axis=1).tolist()
        return {"score": score, "identity_score": identity_score}, measured.sample

    def reference(self, row):
        return f"IdentityModel {row['identity_score']:.3f}{self.verdict(row)}"

    def evaluation_set(self, given, models):
        cache, indices, source = images_with_truth(self.config, given, with_refiner(self, models))
        views = self.config.views
        source += (
            f"; {views} view{'s' if views > 1 else ''}. Score: mean RMSE on the unknown pixels, in grey levels of 255"
        )
        return CachedPixelationDataset(cache, indices, seed=0), source

    def compared(self, models, device):
        if len(models) > 1:
            models = models + [Model("mean of these", mean_of([model.predict for model in models]))]
        models = with_refined(self, models, device)
        if os.path.exists(REFERENCE):
            reference = load_model(self, REFERENCE, set(), device)
            models = models + [reference] * (reference.name not in [model.name for model in models])
        return super().compared(models, device)

    def columns(self, models, measured):
        scores = measured.figures["score"].mean(axis=1)
        pairs = list(zip(models, scores))
        identity = next(score for model, score in pairs if model.name == "IdentityModel")
        basic = (score for model, score in pairs if model.config and model.config.network == "BasicCNN")
        reference = next(basic, None)
        sound = reference and identity > reference  # not so where images are all black, for example
        worth = [f"{points(score, identity, reference):.0f}" if sound else "-" for score in scores]
        return {"points": worth, "place in 2023": [place_in_2023(s, identity) if identity else "-" for s in scores]}

    def report(self, models, measured):
        print(
            "Points: 200 at BasicCNN's score on these images, 50 more below it (the course gives 100 instead below its "
            "AdvancedModel, whose score is not published). Places: scaled by IdentityModel's score, then and here."
        )
        return self.report_errors(models, measured)

    def report_errors(self, models, measured):
        """Print and draw the errors of groups of images, and how real they look; returns the pictures' paths."""
        names, errors = [model.name for model in models], measured.figures["score"]
        width = max(map(len, names))
        for group, (column, ranges, unit) in self.groups.items():
            values = measured.details[:, column]
            members = [(low <= values) & (values <= high) for low, high in ranges]
            print(f"\n{group:{width}} " + " ".join(f"{low}-{high}".rjust(8) for low, high in ranges) + f"  {unit}")
            print(f"{'images':{width}} " + " ".join(f"{member.sum():8,}" for member in members))
            for name, row in zip(names, errors):
                cells = (f"{row[member].mean():8.3f}" if member.any() else " " * 8 for member in members)
                print(f"{name:{width}} " + " ".join(cells))
        pictures = [self.config.file("losses", "_evaluation.png")]
        plot_errors(errors, measured.details, names, pictures[0])
        if measured.outputs:
            pictures += self.report_realism(models, *measured.outputs)
        return [*pictures, *super().report(models, measured)]

    def report_realism(self, models, pixelated_images, known_arrays, images, *predictions):
        """Print a table of how real the models' predictions look, and draw it; returns the pictures' paths."""
        names = [model.name for model in models]
        print_realism(names, pixelated_images, known_arrays, images, *predictions)
        tradeoff, sheet = (self.config.file("losses", f"_evaluation_{name}.png") for name in ("tradeoff", "realism"))
        refined = [model for model in models if isinstance(model.predict, Refined)]
        adversarial = [model for model in models[1:] if model.config and model.config.adversarial]
        ends = [(model.name, predictions[models.index(model)]) for model in refined + adversarial]
        if ends:
            plot_tradeoff((names[0], predictions[0]), ends, images, known_arrays, tradeoff)
        if refined:
            device = choose_device(self.config.device)
            shown = [maps[:: max(1, len(images) // 8)][:8] for maps in (pixelated_images, known_arrays, images)]
            plot_possible(refined[0].predict, *shown, self.config.samples or 3, device, sheet)
        return [tradeoff] * bool(ends) + [sheet] * bool(refined)

    # ---------------------------------------------------------------------------------------------- drawing

    def plot_log(self, rows, path):
        plot_losses(rows, self.config.loss, path)

    def plot_samples(self, sample, path):
        plot_samples(*sample, path)

    def pictures(self, sample):
        pixelated_images, _, predictions, images = sample
        return {"truth, pixelated, prediction": torch.cat([images, pixelated_images, predictions], 3)}


TASK = Depixelation
