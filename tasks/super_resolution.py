"""Super-resolution: the exercise on photos. A photo was reduced to half its size; predict the original."""

import itertools
import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from architectures import BasicSRModel, Interpolation, ResidualSRModel, SubPixelResNet
from datasets import DOWNSCALING, CachedCrops, CachedPhotos
from symmetry import SYMMETRIES
from tasks import Action
from tasks.adversarial import Adversarial, AdversarialConfig
from tasks.evaluation import (
    Measurement,
    load_models,
    mae_per_image,
    plot_columns,
    plot_images,
    psnr_per_image,
    ssim_per_image,
)
from tasks.images import COLOUR_SIDE, held_out_digests, image_source, images_with_truth
from tasks.own_photos import check_written, read_photo, save_photo
from tasks.realism import print_realism
from tasks.refining import refined, with_refined, with_refiner
from utils import ROOT, UserError, inherited, key, show

TILE = 320  # pixels a side of the part of a small photo that is enlarged at once
BORDER = 2  # pixels along the edges of the enlarged photo that papers leave out
SHOWN = 64  # pixels a side of what the sheet of samples shows of a photo; no cached photo is smaller
SQUARE = 64  # pixels a side of what realism is measured on
NETWORKS = {network.__name__: network for network in (SubPixelResNet, BasicSRModel, ResidualSRModel)}


def _even(value):
    return "even" if value % 2 else None


@dataclass
class SuperResolutionConfig(AdversarialConfig):
    """The keys of super-resolution."""

    task: str = inherited("task", "super_resolution")
    name: str = inherited("name", "super_resolution")
    network: str = key("SubPixelResNet", "the architecture", choices=tuple(NETWORKS))
    loss: str = key("l1", "l1, as in the exercise, or mse; of the colours in [0, 1]", choices=("l1", "mse"))
    downscaling: str = key("bicubic", "how photos are halved in size", choices=DOWNSCALING)
    antialias: bool = key(
        True, "whether that takes every pixel into account, as in Pillow and MATLAB; for nearest no difference"
    )
    crop_size: int = key(96, "side of the random crops, in pixels", minimum=16, maximum=1024, check=_even)
    jitter: float = key(
        0.0, "how far brightness, contrast, saturation and hue are changed; the sheet has 0.2", minimum=0, maximum=0.5
    )
    crops: int = key(6400, "crops in an epoch, the photos taking turns", minimum=1, maximum=10**7)
    batch_size: int = inherited("batch_size", 16)
    learning_rate: float = inherited("learning_rate", 1e-3)
    synthetic_images: int = inherited("synthetic_images", 2000)
    views: int = key(
        1,
        "predictions to average, of the photo flipped and transposed; 8 is best, and takes 8 times as long "
        "(SubPixelResNet)",
        minimum=1,
        maximum=8,
        command=True,
    )


# ------------------------------------------------------------------------------------------------ whole photos


@torch.inference_mode()
def enlarge_photo(network, pixels, device, precision):
    """A photo, (C, h, w) uint8 with C 1 or 3, at twice the size: (C, 2h, 2w) uint8.

    The network sees it in tiles, each with the surroundings that it depends on: the result is that of the whole photo.
    Besides photo and result, memory is needed for one tile only.
    """
    reach = network.reach
    channels, height, width = pixels.shape
    result = torch.empty(channels, 2 * height, 2 * width, dtype=torch.uint8)
    corners = list(itertools.product(range(0, height, TILE), range(0, width, TILE)))
    for top, left in tqdm(corners, desc="enlarging", unit=" tiles", leave=False, disable=len(corners) < 10):
        bottom, right = min(top + TILE, height), min(left + TILE, width)
        y, x = max(0, top - reach), max(0, left - reach)
        tile = pixels[:, y : bottom + reach, x : right + reach].to(device).float() / 255
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            output = network(tile.expand(3, -1, -1)[None]).float()[0]  # (3, 2h, 2w)
        output = output[:, 2 * (top - y) : 2 * (bottom - y), 2 * (left - x) : 2 * (right - x)]
        output = output if channels == 3 else output.mean(0, keepdim=True)
        result[:, 2 * top : 2 * bottom, 2 * left : 2 * right] = (output * 255).clamp(0, 255).round()
    return result


def luminance(photo):
    """Y of MATLAB's rgb2ycbcr, not rounded, (1, H, W) float64 in [16/255, 235/255]; of a grey photo its values.

    photo: (C, H, W) uint8 with C 1 or 3.
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    photo = photo.double() / 255
    return (torch.einsum("c,chw->hw", weights, photo)[None] + 16) / 255 if len(photo) == 3 else photo


def figures_of(prediction, photo):
    """{score: value} of an enlarged photo, both (C, H, W) uint8."""
    cropped = (slice(None), slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    figures = {}
    for name, (a, b) in {"y": map(luminance, (prediction, photo)), "rgb": (prediction / 255.0, photo / 255.0)}.items():
        a, b = a[cropped][None].double(), b[cropped][None].double()
        figures[f"psnr_{name}"], figures[f"ssim_{name}"] = psnr_per_image(a, b).item(), ssim_per_image(a, b).item()
    return figures | {"l1": mae_per_image(prediction[None] / 255.0, photo[None] / 255.0).item()}


def grey_squares(photo):
    """The photo, (C, H, W) uint8, cut into squares of SQUARE pixels a side, in grey: (N, 1, SQUARE, SQUARE) uint8."""
    grey = (luminance(photo) * 255).round().to(torch.uint8)
    return grey.unfold(1, SQUARE, SQUARE).unfold(2, SQUARE, SQUARE).reshape(-1, 1, SQUARE, SQUARE)


def fill_transparent(photo, alpha):
    """The photo, (C, H, W) uint8, its invisible pixels in the colours around, of which enlarging takes some over.

    alpha: (H, W) uint8.
    """
    visible = (alpha > 0).float()[None]
    colours, weights = (F.avg_pool2d(maps, 17, 1, 8) for maps in (photo * visible, visible))
    return torch.where(visible > 0, photo, (colours / weights.clamp(min=1e-6)).round().to(torch.uint8))


def predict_photos(task, given, paths):
    """--predict: write each photo at twice its size beside it, as PHOTO_x2.png."""
    written = check_written(paths, "_x2.png")
    (model,), device, precision = load_models(task, given, [])
    network = refined(task, model.predict, device)
    for path, enlarged in zip(paths, written):
        pixels, alpha, profile = read_photo(path)
        started = time.monotonic()
        planes = torch.tensor(pixels).permute(2, 0, 1)
        if alpha is not None:
            planes = fill_transparent(planes, torch.tensor(alpha))
        result = enlarge_photo(network, planes, device, precision).permute(1, 2, 0).numpy()
        if alpha is not None:
            alpha = np.asarray(Image.fromarray(alpha).resize(result.shape[1::-1], Image.Resampling.BICUBIC))
        save_photo(result, alpha, profile, enlarged)
        seconds = time.monotonic() - started
        print(f"{show(path)}: {result.shape[1]} x {result.shape[0]} pixels in {seconds:.1f} s: {show(enlarged)}")
    return 0


# ------------------------------------------------------------------------------------------------ the task


class SuperResolution(Adversarial):
    """Predict the photo at twice the size. A batch: small and large crops, (N, 3, S/2, S/2) and (N, 3, S, S) uint8."""

    Config = SuperResolutionConfig
    summary = "enlarge photos to twice their size"
    networks = NETWORKS
    scores = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "l1")
    higher_is_better = True
    curves = ("train_loss", "l1", "psnr_y")  # the sheet's
    shipped = os.path.join(ROOT, "models", "SR.pt")
    refiner = os.path.join(ROOT, "models", "SR_real.pt")
    seen_channels = 6
    actions = {
        "predict": Action(
            "+",
            "PHOTO",
            "write each photo at twice its size, 8 bits a channel, beside it as PHOTO_x2.png",
            predict_photos,
        )
    }

    def example_input(self):
        return torch.zeros(1, 3, 32, 32)

    def prepare(self):
        config = self.config
        cache, train_indices, validation_indices = image_source(config, colour=True)
        self.held_out = held_out_digests(cache, train_indices, validation_indices)
        smallest = config.crop_size + 2 * CachedCrops.MARGIN
        large = [i for i in train_indices if min(cache.shapes[i][:2]) >= smallest]
        if not large:
            raise UserError(
                f"crop_size: no photo of {show(config.images)} has the {smallest} pixels a side that crops of "
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

    def loss(self, name, parts, batch):
        if name == "discriminator":
            return self.tell_apart(parts[name])
        small, large = (crops.float() / 255 for crops in batch)
        enlarged = parts[name](small).float()
        loss = (F.l1_loss if self.config.loss == "l1" else F.mse_loss)(enlarged, large)
        known, everywhere = F.interpolate(small, scale_factor=2), torch.ones_like(large[:, :1])
        return self.deceive(parts, loss, enlarged, large, known, everywhere), len(large)

    # ---------------------------------------------------------------------------------------------- measuring

    def predictor(self, network, made):
        if hasattr(network, "symmetries"):
            network.symmetries = SYMMETRIES[: self.config.views]
        return network

    def baselines(self):
        return {kind: Interpolation(kind) for kind in ("nearest", "bilinear", "bicubic")}

    def measure(self, predictors, dataset, device, precision):
        rows, seconds, sample, outputs = [], np.zeros(len(predictors)), [], []
        for position in tqdm(range(len(dataset)), desc="validation", unit=" photos", leave=False):
            small, large = dataset[position]
            row, squares = [], [grey_squares(large)]
            for i, network in enumerate(predictors):
                seconds[i] -= time.perf_counter()
                prediction = enlarge_photo(network, small, device, precision)
                seconds[i] += time.perf_counter()
                row.append(figures_of(prediction, large))
                squares.append(grey_squares(prediction))
                if i == 0 and len(sample) < 6:
                    bicubic = enlarge_photo(Interpolation(), small, device, torch.float32)
                    sample.append([middle(photo, large) for photo in (small, bicubic, prediction, large)])
            rows.append(row)
            if self.config.realism:
                outputs.append(squares)
        outputs = [torch.cat(tensors) for tensors in zip(*outputs)]
        figures = {name: np.array([[cell[name] for cell in row] for row in rows]).T for name in self.scores}
        return Measurement(figures, seconds, [torch.stack(crops) for crops in zip(*sample)], outputs=outputs)

    def reference(self, row):
        return f"SSIM {row['ssim_y']:.4f}, in RGB {row['psnr_rgb']:.3f} dB{self.verdict(row)}"

    def evaluation_set(self, given, models):
        made = next((model.config for model in models if model.config), None)
        if made and "downscaling" not in given:  # as the first model knows it
            for name in {"downscaling", "antialias"} - given:
                setattr(self.config, name, getattr(made, name))
        config = self.config
        cache, indices, source = images_with_truth(config, given, with_refiner(self, models), colour=True)
        source += " (of the largest the middle)" * bool(cache.shapes[indices, :2].max() == COLOUR_SIDE)
        views = f" (SubPixelResNet: mean of {config.views} views)" * (config.views > 1)
        smooth = "" if config.antialias or config.downscaling == "nearest" else " without antialiasing"
        return CachedPhotos(cache, indices, config.downscaling, config.antialias), (
            f"{source}; reduced to half the size, {config.downscaling}{smooth}, rounded to uint8, and enlarged{views}. "
            f"Per photo, {BORDER} pixels at each edge left out: PSNR in dB, SSIM (11x11, Gaussian), on Y of MATLAB's "
            f"rgb2ycbcr, and in RGB. L1 of colours in [0, 1], edges included"
        )

    def compared(self, models, device):
        return super().compared(with_refined(self, models, device), device)

    def report(self, models, measured):
        if measured.outputs:
            truth, names = measured.outputs[0], [model.name for model in models]
            print_realism(names, None, torch.zeros_like(truth, dtype=torch.bool), *measured.outputs)
        return super().report(models, measured)

    # ---------------------------------------------------------------------------------------------- drawing

    def plot_log(self, rows, path):
        columns = (
            ("own_loss" if "own_loss" in rows[0] else "train_loss", f"training loss, {self.config.loss.upper()}"),
            ("l1", "validation L1"),
            ("psnr_y", "validation PSNR on Y in dB"),
        )
        plot_columns(rows, columns, path)

    def plot_samples(self, sample, path):
        """A sheet, a row a photo: the middle of it at half the size, enlarged twice, and the truth.

        sample: these, bicubic before restored: (N, 3, S / 2, S / 2), three times (N, 3, S, S) uint8.
        """
        small, bicubic, restored, truth = sample
        columns = {"half the size": small, "bicubic": bicubic, "restored": restored, "truth": truth}
        texts = {
            title: [f"PSNR on Y {figures_of(*pair)['psnr_y']:.2f} dB" for pair in zip(columns[title], truth)]
            for title in ("bicubic", "restored")
        }
        plot_images(columns, path, texts)

    def pictures(self, sample):
        return {"restored, truth": torch.cat(sample[2:], 3)}


def middle(photo, large):
    """The middle SHOWN x SHOWN pixels of a photo, (3, SHOWN, SHOWN), or of it at half the size. large: the photo."""
    top, left = (length // 4 * 2 - SHOWN // 2 for length in large.shape[1:])
    factor = large.shape[1] // photo.shape[1]  # 1 or 2
    top, left, side = (length // factor for length in (top, left, SHOWN))
    return photo[:, top : top + side, left : left + side].expand(3, -1, -1)


TASK = SuperResolution
