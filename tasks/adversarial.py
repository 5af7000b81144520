"""Adversarial training, --adversarial W: a discriminator learns to tell restored from true images, and the task's
network to deceive it.

Relativistic (Jolicoeur-Martineau 2019): of each pair of a restored and a true image it says which is which. Feature
matching (Wang et al. 2018, pix2pixHD) on its own features stands in for a downloaded network.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from tasks import Task
from utils import Config, key

MATCHING = 2.0  # weight of feature matching beside the adversarial loss
PENALTY, EVERY = 1e-3, 16  # weight of R1, for values in [0, 1]; the steps that share one computation of it
MARGIN = 6  # pixels around what is judged that the discriminator sees
WINS, DIES = 0.95, 0.55  # shares of pixels told right from which on the discriminator has won, or learned nothing


@dataclass
class AdversarialConfig(Config):
    """The keys of tasks that can be trained against a discriminator, and of what comes of it."""

    adversarial: float = key(
        0.0,
        "weight of the adversarial loss; 0: none. Start from a trained model with --init; the last weights are kept",
        minimum=0,
        maximum=1000,
    )
    realism: float = key(
        0.0,
        "how real restorations look: from 0, most accurate, to 1, most real; with --evaluate, measure it too",
        argparse={"nargs": "?", "const": "1"},
        minimum=0,
        maximum=1,
        command=True,
    )
    refiner: str | None = key(
        None,
        "the model for --realism, trained with --adversarial or --task flow; none: the one shipped",
        path=True,
        command=True,
    )


class Discriminator(nn.Module):
    """How real each pixel looks: (N, C, H, W) -> logits (N, 1, H, W), and the features of its stages.

    A small U-Net (Schoenfeld et al. 2020) with spectral normalisation (Miyato et al. 2018), as Real-ESRGAN's.
    """

    def __init__(self, in_channels, channels=(32, 48, 64)):
        super().__init__()
        stages = list(zip(channels, channels[1:]))
        self.first = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, padding=1)) for a, b in stages)
        self.up = nn.ModuleList(spectral_norm(nn.Conv2d(b, a, 3, padding=1)) for a, b in reversed(stages))
        self.same = spectral_norm(nn.Conv2d(channels[0], channels[0], 3, padding=1))
        self.last = nn.Conv2d(channels[0], 1, 3, padding=1)

    def forward(self, maps):
        x = F.leaky_relu(self.first(maps), 0.2)
        features = [x]
        for layer in self.down:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        for layer, skip in zip(self.up, features[-2::-1]):
            x = F.leaky_relu(layer(F.interpolate(x, skip.shape[2:])), 0.2) + skip
        return self.last(F.leaky_relu(self.same(x), 0.2)).float(), features


def mean_inside(values, inside):
    """The mean over images of the mean of values, (N, C, h, w), where inside, (N, 1, H, W), is 1."""
    weights = F.adaptive_avg_pool2d(inside, values.shape[2:])
    return ((values * weights).mean(1).sum((1, 2)) / weights.sum((1, 2, 3)).clamp(min=1e-6)).mean()


def crop(inside, *maps):
    """Windows of inside, (N, 1, H, W), and of maps, (N, C, H, W), all of one size, in which all that is inside lies."""
    places = []
    for axis in (2, 3):
        hit = inside.amax((1, 5 - axis))  # (N, H or W)
        length, first, after = hit.shape[1], hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)
        side = min(length, -(-(int((after - first).max()) + 2 * MARGIN) // 4) * 4)
        start = torch.div(first + after - side, 2, rounding_mode="floor").clamp(0, length - side)
        places.append(start[:, None] + torch.arange(side, device=start.device))
    images = torch.arange(len(inside), device=inside.device)[:, None, None]
    at = images, slice(None), places[0][:, :, None], places[1][:, None]
    return [tensor[at].movedim(3, 1).contiguous() for tensor in (inside, *maps)]


class Adversarial(Task):
    """A task that can be trained so. Its `loss` gives the discriminator's to `tell_apart`, and its own to `deceive`."""

    seen_channels = 3  # of the maps that the discriminator sees: a restored or true image, and what is known of it

    def __init__(self, config):
        super().__init__(config)
        if getattr(config, "adversarial", 0):
            self.parts = (*self.parts, "discriminator")
            self.keeps_last = True

    def build_parts(self):
        parts = super().build_parts()
        if "discriminator" in self.parts:
            parts["discriminator"] = Discriminator(self.seen_channels)
        return parts

    def deceive(self, parts, loss, restored, truth, known, inside):
        """{column: mean}: the loss, with that of deceiving, if it is wanted.

        restored, truth: (N, C, H, W) float32 in [0, 1]. known: what is known of them, (N, D, H, W). inside: (N, 1, H,
        W), 1 where they are judged.
        """
        if "discriminator" not in self.parts:
            return {"train_loss": loss}
        inside, restored, truth, known = crop(inside, restored, truth, known)
        self.pair = restored.detach(), truth, known, inside
        judge = parts["discriminator"].frozen
        logits, features = judge(torch.cat([restored, known], dim=1))
        with torch.no_grad():
            true_logits, true_features = judge(torch.cat([truth, known], dim=1))
        deceiving = mean_inside(F.softplus(true_logits - logits), inside)
        matching = sum(mean_inside((a - b).float().abs(), inside) for a, b in zip(features, true_features))
        total = loss + self.config.adversarial * (deceiving + MATCHING * matching)
        return {"train_loss": total, "own_loss": loss, "adversarial_loss": deceiving, "matching_loss": matching}

    def tell_apart(self, part):
        """(losses, count) of the discriminator on the images of the last `deceive`."""
        restored, truth, known, inside = self.pair
        penalise = part.steps % EVERY == 0
        seen = torch.cat([truth, known], dim=1).requires_grad_(penalise)
        true_logits, logits = part(seen)[0], part(torch.cat([restored, known], dim=1))[0]
        loss = mean_inside(F.softplus(logits - true_logits), inside)
        if penalise:  # R1 (Mescheder et al. 2018), lazily (Karras et al. 2020)
            (slope,) = torch.autograd.grad((true_logits * inside).sum(), seen, create_graph=True)
            slope = slope[:, : truth.shape[1]].square().sum((1, 2, 3)) / inside.sum((1, 2, 3))
            loss = loss + EVERY * PENALTY / 2 * slope.mean()
        right = mean_inside((true_logits > logits).float(), inside)
        return {"discriminator_loss": loss, "told_apart": right}, len(truth)

    def verdict(self, row):
        """For `reference`: whether the discriminator still teaches anything."""
        right = row.get("told_apart")
        if right is None:
            return ""
        found = ": it wins, lower --adversarial" if right > WINS else ": it tells nothing apart" * (right < DIES)
        return f", discriminator right on {right:.0%}{found}"
