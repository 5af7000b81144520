"""Denoising: the exercise on Fashion-MNIST. Noise was added to an image of 28x28 pixels; predict the clean image."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from architectures import DenoisingCNN, UNet
from datasets import NOISE, NoisyImages
from depixelation.engine.measuring import Measurement, mae_per_image, psnr_per_image
from depixelation.engine.options import EvaluateOptions, named_only
from depixelation.figures.curves import column_panels
from depixelation.figures.sheets import sheet_rows
from depixelation.images.digits import DigitsConfig, DigitsTask
from utils import ROOT, inherited, key

BATCH = 500  # images measured at once
NETWORKS = {network.__name__: network for network in (UNet, DenoisingCNN)}


@dataclass(frozen=True)
class DenoisingConfig(DigitsConfig):
    """The keys of denoising."""

    task: str = inherited("task", "denoising")
    name: str = inherited("name", "denoiser")  # models/denoising.pt is shipped
    network: str = key("UNet", "the architecture", choices=tuple(NETWORKS))
    learning_rate: float = inherited("learning_rate", 2e-3)
    loss: str = key("mse", "mse, as in the exercise, or mae, the score", choices=("mse", "mae"))
    noise: str = key(
        "uniform", "the noise: uniform in (0, 1), or gaussian of mean 0, deviation 1", choices=tuple(NOISE)
    )
    noise_level: float = key(1.0, "what the noise is multiplied with", above=0, maximum=100)


@dataclass(frozen=True)
class DenoisingEvaluateOptions(EvaluateOptions):
    """Of --evaluate: another noise than the model's, too."""

    noise: str | None = named_only("noise", DenoisingConfig)
    noise_level: float | None = named_only("noise_level", DenoisingConfig)


def median(images):
    """The median of each pixel's 3x3 surroundings; (N, 1, H, W), mirrored at the edges."""
    around = F.unfold(F.pad(images, (1, 1, 1, 1), "reflect"), 3)  # (N, 9, H * W)
    return around.median(1).values.view_as(images)


class Denoising(DigitsTask):
    """Predict the clean image. A batch: noisy and clean images, (N, 1, 28, 28) float32."""

    Config = DenoisingConfig
    EvaluateOptions = DenoisingEvaluateOptions
    summary = "remove noise from images of MNIST or Fashion-MNIST, or from pictures of your own"
    networks = NETWORKS
    scores = ("mae", "psnr")
    decimals = 4
    next_command = "--task denoising --predict PICTURE"
    shipped = os.path.join(ROOT, "models", "denoising_unet.pt")

    def dataset(self, images, labels, training):
        config = self.config
        return NoisyImages(images, not training, config.noise, config.noise_level, config.seed if training else 0)

    def loss(self, learner, batch):
        noisy, clean = batch
        loss = (F.mse_loss if self.config.loss == "mse" else F.l1_loss)(learner(noisy).float(), clean)
        return {"train_loss": loss}, len(clean)

    # ---------------------------------------------------------------------------------------------- measuring

    def baselines(self):
        mean = self.config.noise_level * NOISE[self.config.noise][0]
        return {
            "noisy image": lambda noisy: noisy,
            "minus mean": lambda noisy: noisy - mean,
            "3x3 median": lambda noisy: median(noisy - mean),
        }

    def measure(self, predictors, dataset, keep_outputs=False):
        figures = {name: [[] for _ in predictors] for name in self.scores}
        started, sample = [predictor.seconds for predictor in predictors], None
        for noisy, clean in DataLoader(dataset, BATCH, generator=torch.Generator()):  # not the global one
            for i, predictor in enumerate(predictors):
                restored = predictor(noisy).cpu()
                figures["mae"][i].append(mae_per_image(restored.double(), clean.double()))
                figures["psnr"][i].append(psnr_per_image(restored.double(), clean.double()))
                if sample is None:
                    sample = [images[:8] for images in (noisy, restored, clean)]
        stacked = {name: np.stack([torch.cat(parts) for parts in rows]) for name, rows in figures.items()}
        return Measurement(stacked, [p.seconds - before for p, before in zip(predictors, started)], sample)

    def reference(self, row):
        return f"PSNR {row['psnr']:.2f} dB"

    # ---------------------------------------------------------------------------------------------- --evaluate

    def inherited_keys(self, options):
        return ("noise", "noise_level")

    def evaluation_set(self, models, options):
        config = self.config
        dataset, source = self.test_part()
        level = f" times {config.noise_level:g}" if config.noise_level != 1 else ""
        return dataset, f"{source}; {config.noise} noise{level}. MAE of images in [0, 1]; PSNR in dB"

    # ---------------------------------------------------------------------------------------------- what is drawn

    def log_panels(self, rows):
        columns = (
            ("train_loss", f"training loss, {self.config.loss.upper()}"),
            ("mae", "validation MAE"),
            ("psnr", "validation PSNR in dB"),
        )
        return column_panels(rows, columns)

    def sample_sheet(self, sample):
        """A row an image: noisy, restored, clean, error. sample: the first three, (N, 1, H, W) float32."""
        noisy, restored, clean = sample
        low, high = min(0.0, float(noisy.min())), max(1.0, float(noisy.max()))
        columns = {
            f"noisy, black {low:.1f}, white {high:.1f}": (noisy - low) / (high - low),
            "restored": restored,
            "clean": clean,
            "error, black 0, white 0.5": 2 * (restored - clean).abs(),
        }
        texts = [f"MAE {error:.3f}" for error in mae_per_image(restored, clean)]
        return sheet_rows({title: 255 * column for title, column in columns.items()}, {list(columns)[-1]: texts})

    def pictures(self, sample):
        images = torch.cat(list(sample), 3)  # noisy, restored, clean side by side
        return {"noisy, restored, clean": (images.clamp(0, 1) * 255).round().to(torch.uint8)}


TASK = Denoising
