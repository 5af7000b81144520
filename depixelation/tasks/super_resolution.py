"""Super-resolution: the exercise on photos. A photo was reduced to half its size; predict the original."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from architectures import BasicSRModel, EquivariantSubPixelResNet, Interpolation, ResidualSRModel, SubPixelResNet
from datasets import DOWNSCALING, CachedCrops, CachedPhotos
from depixelation.engine.adversarial import Adversarial, AdversarialConfig
from depixelation.engine.enlarging import BORDER, enlarge_photo, figures_of, grey_squares
from depixelation.engine.measuring import Measurement
from depixelation.engine.options import EvaluateOptions, RealismOptions, named_only
from depixelation.engine.predictor import Predictor
from depixelation.figures.curves import column_panels
from depixelation.figures.sheets import sheet_rows
from depixelation.images.holdout import content_digest, held_out_digests, image_source, images_with_truth
from depixelation.images.photos import COLOUR_SIDE
from utils import ROOT, UserError, display_path, inherited, key

SHOWN = 64  # pixels a side of a photo's part on the sheet of samples; no cached photo is smaller
NETWORKS = (EquivariantSubPixelResNet, SubPixelResNet, BasicSRModel, ResidualSRModel)
NETWORKS = {network.__name__: network for network in NETWORKS}


def _even(value):
    return "even" if value % 2 else None


@dataclass(frozen=True)
class SuperResolutionConfig(AdversarialConfig):
    """The keys of super-resolution."""

    task: str = inherited("task", "super_resolution")
    name: str = inherited("name", "super_resolution")
    network: str = key("EquivariantSubPixelResNet", "the architecture", choices=tuple(NETWORKS))
    loss: str = key("l1", "l1, as in the exercise, or mse; of the colours in [0, 1]", choices=("l1", "mse"))
    downscaling: str = key("bicubic", "how photos are halved in size", choices=DOWNSCALING)
    antialias: bool = key(
        True, "whether halving takes every pixel into account, as in Pillow and MATLAB; no effect on nearest"
    )
    crop_size: int = key(96, "side of the random crops, in pixels", minimum=16, maximum=1024, check=_even)
    jitter: float = key(
        0.0, "largest change of brightness, contrast, saturation and hue; the sheet has 0.2", minimum=0, maximum=0.5
    )
    crops: int = key(6400, "crops per epoch; the photos take turns", minimum=1, maximum=10**7)
    batch_size: int = inherited("batch_size", 16)
    learning_rate: float = inherited("learning_rate", 1e-3)
    synthetic_images: int = inherited("synthetic_images", 2000)


@dataclass(frozen=True)
class SuperResolutionEvaluateOptions(RealismOptions, EvaluateOptions):
    """Options of --evaluate: another downscaling than the model's, and realism."""

    downscaling: str | None = named_only("downscaling", SuperResolutionConfig)
    antialias: bool | None = named_only("antialias", SuperResolutionConfig)


class SuperResolution(Adversarial):
    """Predict the photo at twice the size. A batch: small and large crops, (N, 3, S/2, S/2) and (N, 3, S, S) uint8."""

    Config = SuperResolutionConfig
    EvaluateOptions = SuperResolutionEvaluateOptions
    summary = "enlarge photos to twice their size"
    networks = NETWORKS
    scores = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "l1")
    higher_is_better = True
    curves = ("train_loss", "l1", "psnr_y")  # the sheet's
    next_command = "--task super_resolution --predict PHOTO"
    shipped = os.path.join(ROOT, "models", "SR.pt")
    refiner = os.path.join(ROOT, "models", "SR_real.pt")
    seen_channels = 6

    def example_input(self):
        return torch.zeros(1, 3, 32, 32)

    def prepare(self):
        config = self.config
        cache, train_indices, validation_indices = image_source(config, colour=True)
        self.held_out = held_out_digests(cache, train_indices, validation_indices)
        self.content = content_digest(cache)
        smallest = config.crop_size + 2 * CachedCrops.MARGIN
        large = [i for i in train_indices if min(cache.shapes[i][:2]) >= smallest]
        if not large:
            raise UserError(
                f"crop_size: no photo of {display_path(config.images)} has the {smallest} pixels a side that crops of "
                f"{config.crop_size} need; name a smaller size"
            )
        if config.network_options.get("consistent") and (config.downscaling != "bilinear" or config.antialias):
            raise UserError("network_options: consistent needs --downscaling bilinear --antialias false")
        if len(large) < len(train_indices):
            print(f"{len(train_indices) - len(large)} photos under {smallest} pixels a side are not trained on")
        self.training_set = CachedCrops(
            cache,
            large,
            config.seed,
            config.crops,
            config.max_images,
            size=config.crop_size,
            jitter=config.jitter,
            downscaling=config.downscaling,
            antialias=config.antialias,
        )
        self.validation_set = CachedPhotos(cache, validation_indices, config.downscaling, config.antialias)

    def loss(self, learner, batch):
        small, large = (crops.float() / 255 for crops in batch)
        enlarged = learner(small).float()
        loss = (F.l1_loss if self.config.loss == "l1" else F.mse_loss)(enlarged, large)
        known, everywhere = F.interpolate(small, scale_factor=2), torch.ones_like(large[:, :1])
        return self.generator_loss(loss, enlarged, large, known, everywhere), len(large)

    # ---------------------------------------------------------------------------------------------- measuring

    def baselines(self):
        return {kind: Interpolation(kind) for kind in ("nearest", "bilinear", "bicubic")}

    def measure(self, predictors, dataset, keep_outputs=False):
        rows, sample, outputs = [], [], []
        started = [predictor.seconds for predictor in predictors]
        interpolation = Predictor(Interpolation(), torch.device("cpu"))
        for position in tqdm(range(len(dataset)), desc="validation", unit=" photos", leave=False):
            small, large = dataset[position]
            enlarged = [enlarge_photo(predictor, small) for predictor in predictors]
            rows.append([figures_of(photo, large) for photo in enlarged])
            if len(sample) < 6:
                bicubic = enlarge_photo(interpolation, small)
                sample.append([middle(photo, large) for photo in (small, bicubic, enlarged[0], large)])
            if keep_outputs:
                outputs.append([grey_squares(photo) for photo in (large, *enlarged)])
        outputs = [torch.cat(tensors) for tensors in zip(*outputs)]
        outputs = [None, torch.zeros_like(outputs[0], dtype=torch.bool), *outputs] if outputs else None
        figures = {name: np.array([[cell[name] for cell in row] for row in rows]).T for name in self.scores}
        seconds = [predictor.seconds - before for predictor, before in zip(predictors, started)]
        return Measurement(figures, seconds, [torch.stack(crops) for crops in zip(*sample)], outputs=outputs)

    def reference(self, row):
        return f"SSIM {row['ssim_y']:.4f}, in RGB {row['psnr_rgb']:.3f} dB{self.discriminator_state(row)}"

    # ---------------------------------------------------------------------------------------------- --evaluate

    def inherited_keys(self, options):
        return ("downscaling", "antialias") if options.downscaling is None else ()

    def evaluation_set(self, models, options):
        config, views = self.config, options.views or self.default_views
        cache, indices, source = images_with_truth(config, options, models, colour=True)
        source += " (of the largest the middle)" * bool(cache.shapes[indices, :2].max() == COLOUR_SIDE)
        viewed = f" (SubPixelResNet: mean of {views} views)" * (views > 1)
        smooth = "" if config.antialias or config.downscaling == "nearest" else " without antialiasing"
        return CachedPhotos(cache, indices, config.downscaling, config.antialias), (
            f"{source}; reduced to half the size, {config.downscaling}{smooth}, rounded to uint8, enlarged{viewed}. "
            f"Per photo, {BORDER} pixels at each edge left out: PSNR in dB, SSIM (11x11, Gaussian), on Y of MATLAB's "
            f"rgb2ycbcr, and in RGB. L1 of colours in [0, 1], edges included"
        )

    # ---------------------------------------------------------------------------------------------- what is drawn

    def log_panels(self, rows):
        columns = (
            ("own_loss" if "own_loss" in rows[0] else "train_loss", f"training loss, {self.config.loss.upper()}"),
            ("l1", "validation L1"),
            ("psnr_y", "validation PSNR on Y in dB"),
        )
        return column_panels(rows, columns)

    def sample_sheet(self, sample):
        """One row per photo, of its middle: half the size, bicubic, restored, truth.

        sample: these four, uint8: (N, 3, S / 2, S / 2), then three times (N, 3, S, S).
        """
        small, bicubic, restored, truth = sample
        columns = {"half the size": small, "bicubic": bicubic, "restored": restored, "truth": truth}
        texts = {
            title: [f"PSNR on Y {figures_of(*pair)['psnr_y']:.2f} dB" for pair in zip(columns[title], truth)]
            for title in ("bicubic", "restored")
        }
        return sheet_rows(columns, texts)

    def pictures(self, sample):
        return {"restored, truth": torch.cat(sample[2:], 3)}


def middle(photo, large):
    """The middle of a photo, (3, SHOWN, SHOWN), or the same part at half the size. large: the photo in full size."""
    top, left = (length // 4 * 2 - SHOWN // 2 for length in large.shape[1:])
    factor = large.shape[1] // photo.shape[1]  # 1 or 2
    top, left, side = (length // factor for length in (top, left, SHOWN))
    return photo[:, top : top + side, left : left + side].expand(3, -1, -1)


TASK = SuperResolution
