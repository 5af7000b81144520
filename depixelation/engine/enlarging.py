"""Whole photos at twice their size: in tiles without seams, and how good they are."""

import itertools

import torch
from torch.nn import functional as F
from tqdm import tqdm

from depixelation.engine.measuring import mae_per_image, psnr_per_image, ssim_per_image

TILE = 320  # pixels a side of the part of a small photo that is enlarged at once
BORDER = 2  # pixels along the edges of the enlarged photo that papers leave out
FILLED = 8  # pixels around one from which it is filled
KEPT = 4  # share of the largest alpha around, as 1 / KEPT, from which on a pixel keeps its colour
SQUARE = 64  # pixels a side of what realism is measured on


def enlarge_photo(predictor, pixels):
    """A photo, (C, h, w) uint8 with C 1 or 3, at twice the size: (C, 2h, 2w) uint8.

    predictor: a Predictor. It sees the photo in tiles, each with the surroundings that it depends on, so the result is
    that of the whole photo. Besides photo and result, memory is needed for one tile only.
    """
    reach = predictor.reach
    channels, height, width = pixels.shape
    result = torch.empty(channels, 2 * height, 2 * width, dtype=torch.uint8)
    corners = list(itertools.product(range(0, height, TILE), range(0, width, TILE)))
    for top, left in tqdm(corners, desc="enlarging", unit=" tiles", leave=False, disable=len(corners) < 10):
        bottom, right = min(top + TILE, height), min(left + TILE, width)
        y, x = max(0, top - reach), max(0, left - reach)
        tile = pixels[:, y : bottom + reach, x : right + reach].float() / 255
        output = predictor(tile.expand(3, -1, -1)[None])[0].cpu()  # (3, 2h, 2w)
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
    """The photo, (C, H, W) uint8, its hardly visible pixels in the colours around: enlarging takes some of them over.

    The less visible a pixel is beside the others within FILLED pixels, the more it becomes their mean, each weighted by
    its alpha. alpha: (H, W) uint8.
    """
    result = torch.empty_like(photo)
    for top in range(0, len(alpha), TILE):  # in strips, to save memory
        begin = max(0, top - FILLED)
        rows = slice(begin, top + TILE + FILLED)
        weights, colours = alpha[rows].float()[None] / 255, photo[:, rows].float()
        side = {"kernel_size": 2 * FILLED + 1, "stride": 1, "padding": FILLED}
        around = F.avg_pool2d(colours * weights, **side) / F.avg_pool2d(weights, **side).clamp(min=1e-6)
        share = (KEPT * weights / F.max_pool2d(weights, **side).clamp(min=1e-6)).clamp(max=1)
        filled = (around + share * (colours - around)).round().clamp(0, 255).to(torch.uint8)
        result[:, top : top + TILE] = filled[:, top - begin : top - begin + TILE]
    return result
