"""Denoising: the exercise on Fashion-MNIST. Noise was added to an image of 28x28 pixels; predict the clean image."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from architectures import DenoisingCNN, UNet
from datasets import NOISE, NoisyImages
from tasks.digits import DigitsConfig, DigitsTask
from tasks.evaluation import Measurement, mae_per_image, plot_columns, plot_images, psnr_per_image
from utils import inherited, key

BATCH = 500  # images measured at once
NETWORKS = {network.__name__: network for network in (UNet, DenoisingCNN)}


@dataclass
class DenoisingConfig(DigitsConfig):
    """The keys of denoising."""

    task: str = inherited("task", "denoising")
    name: str = inherited("name", "denoising")
    network: str = key("UNet", "the architecture", choices=tuple(NETWORKS))
    learning_rate: float = inherited("learning_rate", 2e-3)
    loss: str = key("mse", "mse, as in the exercise, or mae, the score", choices=("mse", "mae"))
    noise: str = key(
        "uniform", "the noise: uniform in (0, 1), or gaussian of mean 0, deviation 1", choices=tuple(NOISE)
    )
    noise_level: float = key(1.0, "what the noise is multiplied with", above=0, maximum=100)


# ------------------------------------------------------------------------------------------------ the task


def median(images):
    """The median of each pixel's 3x3 surroundings; (N, 1, H, W), mirrored at the edges."""
    around = F.unfold(F.pad(images, (1, 1, 1, 1), "reflect"), 3)  # (N, 9, H * W)
    return around.median(1).values.view_as(images)


class Denoising(DigitsTask):
    """Predict the clean image. A batch: noisy and clean images, (N, 1, 28, 28) float32."""

    Config = DenoisingConfig
    summary = "remove noise from images of MNIST or Fashion-MNIST"
    networks = NETWORKS
    scores = ("mae", "psnr")
    decimals = 4

    def dataset(self, images, labels, training):
        config = self.config
        return NoisyImages(images, not training, config.noise, config.noise_level, config.seed if training else 0)

    def loss(self, name, parts, batch):
        noisy, clean = batch
        loss = (F.mse_loss if self.config.loss == "mse" else F.l1_loss)(parts[name](noisy).float(), clean)
        return {"train_loss": loss}, len(clean)

    # ---------------------------------------------------------------------------------------------- measuring

    def baselines(self):
        config = self.config  # whose noise may be another one by the time that these are called

        def centred(noisy):
            return noisy - config.noise_level * NOISE[config.noise][0]

        return {
            "noisy image": lambda noisy: noisy,
            "minus mean": centred,
            "3x3 median": lambda noisy: median(centred(noisy)),
        }

    def evaluation_set(self, given, models):
        made = next((model.config for model in models if model.config), None)
        for name in {"noise", "noise_level"} - given if made else ():  # as the first model knows it
            setattr(self.config, name, getattr(made, name))
        dataset, source = super().evaluation_set(given, models)
        level = f" times {self.config.noise_level:g}" if self.config.noise_level != 1 else ""
        return dataset, f"{source}; {self.config.noise} noise{level}. MAE of images in [0, 1]; PSNR in dB"

    @torch.inference_mode()
    def measure(self, predictors, dataset, device, precision):
        figures = {name: [[] for _ in predictors] for name in self.scores}
        seconds, sample = np.zeros(len(predictors)), None
        for noisy, clean in DataLoader(dataset, BATCH, generator=torch.Generator()):  # not the global one
            for i, predict in enumerate(predictors):
                seconds[i] -= time.perf_counter()
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    restored = predict(noisy.to(device)).float().cpu()
                seconds[i] += time.perf_counter()
                figures["mae"][i].append(mae_per_image(restored.double(), clean.double()))
                figures["psnr"][i].append(psnr_per_image(restored.double(), clean.double()))
                if sample is None:
                    sample = [images[:8] for images in (noisy, restored, clean)]
        stacked = {name: np.stack([torch.cat(parts) for parts in rows]) for name, rows in figures.items()}
        return Measurement(stacked, seconds, sample)

    def reference(self, row):
        return f"PSNR {row['psnr']:.2f} dB"

    # ---------------------------------------------------------------------------------------------- drawing

    def plot_log(self, rows, path):
        columns = (
            ("train_loss", f"training loss, {self.config.loss.upper()}"),
            ("mae", "validation MAE"),
            ("psnr", "validation PSNR in dB"),
        )
        plot_columns(rows, columns, path)

    def plot_samples(self, sample, path):
        """A sheet, a row an image: noisy, restored, clean, error. sample: the first three, (N, 1, H, W) float32."""
        noisy, restored, clean = sample
        low, high = min(0.0, float(noisy.min())), max(1.0, float(noisy.max()))
        columns = {
            f"noisy, black {low:.1f}, white {high:.1f}": (noisy - low) / (high - low),
            "restored": restored,
            "clean": clean,
            "error, black 0, white 0.5": 2 * (restored - clean).abs(),
        }
        texts = [f"MAE {error:.3f}" for error in mae_per_image(restored, clean)]
        plot_images({title: 255 * column for title, column in columns.items()}, path, {list(columns)[-1]: texts})

    def pictures(self, sample):
        images = torch.cat(list(sample), 3)  # noisy, restored, clean side by side
        return {"noisy, restored, clean": (images.clamp(0, 1) * 255).round().to(torch.uint8)}


TASK = Denoising
