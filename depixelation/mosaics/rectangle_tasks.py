"""Shared by the tasks that restore one pixelated rectangle of an image: data, loss, measures and tables."""

import os
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from architectures import BasicCNN, DeePixV1, EquivariantUNet, IdentityModel, OddUNet, ResidualUNet
from datasets import IMAGE_SIZE, SIZE_RANGE, CachedPixelationDataset, collate
from depixelation.block_grid import find_block_sizes
from depixelation.engine.adversarial import Adversarial, AdversarialConfig
from depixelation.engine.measuring import Measurement
from depixelation.engine.models import Model, as_model, load_network
from depixelation.engine.options import EvaluateOptions, ModelOptions, RealismOptions
from depixelation.engine.predictor import Ensemble, Predictor
from depixelation.engine.restoration import BATCH, mse_per_image, restore, rmse_per_image, to_inputs
from depixelation.engine.task import Task
from depixelation.figures.restoration import plot_errors, restoration_sheet
from depixelation.images.holdout import content_digest, held_out_digests, image_source, images_with_truth
from utils import ROOT, key

REFERENCE = os.path.join(ROOT, "models", "BasicCNN.pt")  # its score is worth 200 points
NETWORKS = (OddUNet, EquivariantUNet, ResidualUNet, DeePixV1, BasicCNN, IdentityModel)
NETWORKS = {network.__name__: network for network in NETWORKS}
GROUPS = {  # how --evaluate splits the score: (column of a Measurement's details, ranges, unit)
    "block size": (0, ((4, 6), (7, 9), (10, 12), (13, 16)), "pixels"),
    "rectangle": (1, ((16, 127), (128, 255), (256, 511), (512, 1024)), "area in pixels"),
}


def _crop_scale(value):
    numbers = len(value) == 2 and all(type(x) in (int, float) for x in value)
    return None if numbers and 0 < value[0] <= value[1] <= 1 else "two numbers, 0 < smallest <= largest <= 1"


@dataclass(frozen=True)
class RestorationConfig(AdversarialConfig):
    """The keys of tasks that train a network to restore a rectangle."""

    network: str = key("OddUNet", "the architecture", choices=tuple(NETWORKS))
    loss: str = key("rmse", "rmse, the challenge's score, or mse, both on the unknown pixels", choices=("rmse", "mse"))
    crop_scale: list = key(
        [0.7, 1.0],
        "side of the random crops, smallest and largest, as a share of the photo's shortest side",
        check=_crop_scale,
    )


@dataclass(frozen=True)
class RestorationEvaluateOptions(RealismOptions, EvaluateOptions):
    """Options of --evaluate, realism included."""


def training_loss(kind, predictions, images, known_arrays):
    """The loss in grey levels (of 255). rmse: mean of the images' RMSE; mse: mean over unknown pixels, squared levels.

    predictions and images: (N, 1, H, W) float in [0, 1]; known_arrays: bool, False where the loss is taken. Returns the
    loss and the number of images or pixels that it averages.
    """
    if kind == "mse":
        loss, count = F.mse_loss(predictions[~known_arrays] * 255, images[~known_arrays] * 255), (~known_arrays).sum()
        return loss, count
    # The root has no gradient at 0; 1e-8 is (0.03 grey levels)^2.
    losses = 255 * (mse_per_image(predictions, images, known_arrays) + 1e-8).sqrt()
    return losses.mean(), len(losses)


def random_view(network):
    """The keyword argument with which a network sees a batch in a random symmetry; empty if it has no VIEWS."""
    return {"views": torch.randint(len(network.VIEWS), (1,)).tolist()} if hasattr(network, "VIEWS") else {}


class RectangleTask(Task):
    """A task on the challenge's images. A batch: pixelated images, known arrays, images, (N, 1, 64, 64) each."""

    collate = staticmethod(collate)
    groups = GROUPS
    preview_images = 32

    def example_input(self):
        """With the challenge's largest rectangle; smaller ones may take fewer FLOPs."""
        inputs = torch.ones(1, 2, IMAGE_SIZE, IMAGE_SIZE)
        inputs[:, 1, 16:48, 16:48] = 0
        return inputs

    # ---------------------------------------------------------------------------------------------- data

    def prepare(self):
        config = self.config
        cache, train_indices, validation_indices = image_source(config)
        self.held_out = held_out_digests(cache, train_indices, validation_indices)
        self.content = content_digest(cache)
        self.training_set = CachedPixelationDataset(
            cache, train_indices, config.seed, config.crop_scale, config.max_images
        )
        self.validation_set = CachedPixelationDataset(cache, validation_indices, seed=0)  # the same in every run

    def evaluation_set(self, models, options):
        cache, indices, source = images_with_truth(self.config, options, models)
        views = options.views or self.default_views
        source += (
            f"; {views} view{'s' if views > 1 else ''}. Score: mean RMSE on the unknown pixels, in grey levels of 255"
        )
        return CachedPixelationDataset(cache, indices, seed=0), source

    # ---------------------------------------------------------------------------------------------- measuring

    def baselines(self):
        return {"IdentityModel": IdentityModel().eval()}

    def measure(self, predictors, dataset, keep_outputs=False):
        """details: (N, 2), the recovered block size and the rectangle's area, in pixels."""
        errors, geometry, sample, outputs = [], [], [], []
        started = [predictor.seconds for predictor in predictors]
        wanted = set(range(0, len(dataset), max(1, len(dataset) // 8)))
        position = 0
        loader = DataLoader(dataset, BATCH, collate_fn=collate, generator=torch.Generator())  # not the global one
        for batch in tqdm(loader, desc="validation", unit=" batches", leave=False):
            pixelated_images, known_arrays, images = batch
            predictions = [restore(predictor, pixelated_images, known_arrays) for predictor in predictors]
            truth = images.double()
            errors.append(torch.stack([rmse_per_image(each.double(), truth, known_arrays) for each in predictions]))
            chosen = [k for k in range(len(images)) if position + k in wanted]
            sample.append([maps[chosen] for maps in (pixelated_images, known_arrays, predictions[0], images)])
            if keep_outputs:
                outputs.append([*batch, *predictions])
            unknown = ~known_arrays[:, 0]
            sizes = find_block_sizes(pixelated_images[:, 0], unknown, range(SIZE_RANGE[0], SIZE_RANGE[1] + 1))
            geometry.append(torch.stack([sizes, unknown.sum((1, 2))], dim=1))
            position += len(images)
        sample = [torch.cat(tensors)[:8] for tensors in zip(*sample)]
        figures = {"score": torch.cat(errors, dim=1).numpy()}
        outputs = [torch.cat(tensors) for tensors in zip(*outputs)]
        seconds = [predictor.seconds - before for predictor, before in zip(predictors, started)]
        return Measurement(figures, seconds, sample, torch.cat(geometry).numpy(), outputs)

    def validate(self, predictor, images=None):
        identity = Predictor(IdentityModel(), torch.device("cpu"))
        measured = self.measure([predictor, identity], self.validated(images))
        figures, first = (
            dict(zip(("score", "identity_score"), measured.figures["score"][:, :count].mean(axis=1).tolist()))
            for count in (None, self.preview_images or None)
        )
        return figures, first, measured.sample

    def reference(self, row):
        return f"IdentityModel {row['identity_score']:.3f}"

    def report(self, models, measured):
        return report_groups(models, measured, self.groups)

    # ---------------------------------------------------------------------------------------------- what is drawn

    def sample_sheet(self, sample):
        return restoration_sheet(*sample)

    def pictures(self, sample):
        pixelated_images, _, predictions, images = sample
        return {"truth, pixelated, prediction": torch.cat([images, pixelated_images, predictions], 3)}


class RestorationTask(Adversarial, RectangleTask):
    """Trains a network to predict the original pixels of the rectangle."""

    Config = RestorationConfig
    EvaluateOptions = RestorationEvaluateOptions
    networks = NETWORKS
    default_views = 8
    refiner = os.path.join(ROOT, "models", "flow.pt")
    refined_by_flow = True

    def loss(self, learner, batch):
        pixelated_images, known_arrays, images = batch
        inputs = to_inputs(pixelated_images, known_arrays)  # (N, 2, 64, 64)
        predictions = learner(inputs, **random_view(learner.network))  # (N, 1, 64, 64)
        truth, unknown = images.float() / 255, (~known_arrays).float()
        loss, count = training_loss(self.config.loss, predictions, truth, known_arrays)
        return self.generator_loss(loss, predictions, truth, inputs, unknown), count

    def predictor(self, network, trained_with, precision, options):
        """Averages over views of the input, unless the network was trained to look real: averages look less real."""
        if trained_with.adversarial:
            options = ModelOptions(views=1)
        return super().predictor(network, trained_with, precision, options)

    def reference(self, row):
        return super().reference(row) + self.discriminator_state(row)

    def compared(self, models, device, precision):
        if len(models) > 1:
            models = [*models, Model("ensemble of these", Ensemble(model.predictor for model in models))]
        if os.path.exists(REFERENCE):
            loaded = load_network(self, REFERENCE, device)
            reference = as_model(self, REFERENCE, *loaded, precision, ModelOptions())
            reference.asked_for = False
            models = models + [reference] * (reference.name not in [model.name for model in models])
        return super().compared(models, device, precision)


def report_groups(models, measured, groups):
    """Print the errors of groups of images. Returns {suffix: function of a path that draws them}."""
    names, errors = [model.name for model in models], measured.figures["score"]
    width = max(map(len, names))
    for group, (column, ranges, unit) in groups.items():
        values = measured.details[:, column]
        members = [(low <= values) & (values <= high) for low, high in ranges]
        print(f"\n{group:{width}} " + " ".join(f"{low}-{high}".rjust(8) for low, high in ranges) + f"  {unit}")
        print(f"{'images':{width}} " + " ".join(f"{member.sum():8,}" for member in members))
        for name, row in zip(names, errors):
            cells = (f"{row[member].mean():8.3f}" if member.any() else " " * 8 for member in members)
            print(f"{name:{width}} " + " ".join(cells))
    return {"": partial(plot_errors, errors, measured.details, names)}
