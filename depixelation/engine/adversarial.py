"""Adversarial training, --adversarial W: a discriminator learns to tell restored from true images, and the task's
network to mislead it.

It is relativistic (Jolicoeur-Martineau 2019): given a restored and a true image, it says which is which. Feature
matching (Wang et al. 2018, pix2pixHD) on its own features replaces a perceptual loss on a downloaded network.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from depixelation.engine.learner import Learner
from depixelation.engine.task import Task
from utils import Config, key

MATCHING = 2.0  # weight of feature matching beside the adversarial loss
PENALTY, EVERY = 1e-3, 16  # weight of R1, for values in [0, 1]; steps from one computation of it to the next
MARGIN = 6  # pixels of context that the discriminator sees around the judged area
WINS, DIES = 0.95, 0.55  # shares of pixels judged correctly: above, it has won; below, it has learned nothing


@dataclass(frozen=True)
class AdversarialConfig(Config):
    """The keys of tasks that can be trained against a discriminator."""

    adversarial: float = key(
        0.0,
        "weight of the adversarial loss; 0: none. Start from a trained model with --init; the last weights are kept",
        minimum=0,
        maximum=1000,
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
    """Crop `inside`, (N, 1, H, W), and maps, (N, C, H, W), to windows of one size that contain all of `inside`."""
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
    """Base class of tasks with adversarial training. Their `loss` returns `generator_loss`."""

    seen_channels = 3  # of the discriminator's input: a restored or true image, and its known part
    discriminator = None  # its Learner

    def __init__(self, config):
        super().__init__(config)
        self.keeps_last = bool(config.adversarial)

    def build(self, device, precision, processes):
        network = super().build(device, precision, processes)
        if self.config.adversarial:
            discriminator = Discriminator(self.seen_channels).to(device, memory_format=torch.channels_last)
            self.discriminator = Learner(discriminator, self.config, precision, processes)
        return network

    def learners(self, learner):
        beside = {"discriminator": self.discriminator} if self.discriminator else {}
        return super().learners(learner) | beside

    def train_step(self, learner, batch, rate):
        """The network's step, then the discriminator's on the same images."""
        losses, count = super().train_step(learner, batch, rate)
        if self.discriminator:
            more, pairs = self.discriminator_loss()
            self.discriminator.step(more["discriminator_loss"], pairs, rate)
            losses = losses | more
        return losses, count

    def generator_loss(self, loss, restored, truth, known, inside):
        """{column: mean} of the loss, to which a discriminator adds the loss of misleading it.

        restored, truth: (N, C, H, W) float32 in [0, 1]. known: what is known of them, (N, D, H, W). inside: (N, 1, H,
        W), 1 where they are judged.
        """
        if not self.discriminator:
            return {"train_loss": loss}
        inside, restored, truth, known = crop(inside, restored, truth, known)
        self.pair = restored.detach(), truth, known, inside
        judge = self.discriminator.frozen
        logits, features = judge(torch.cat([restored, known], dim=1))
        with torch.no_grad():
            true_logits, true_features = judge(torch.cat([truth, known], dim=1))
        misleading = mean_inside(F.softplus(true_logits - logits), inside)
        matching = sum(mean_inside((a - b).float().abs(), inside) for a, b in zip(features, true_features))
        total = loss + self.config.adversarial * (misleading + MATCHING * matching)
        return {"train_loss": total, "own_loss": loss, "adversarial_loss": misleading, "matching_loss": matching}

    def discriminator_loss(self):
        """(losses, count) of the discriminator on the images of the last `generator_loss`."""
        restored, truth, known, inside = self.pair
        penalise = self.discriminator.steps % EVERY == 0
        seen = torch.cat([truth, known], dim=1).requires_grad_(penalise)
        true_logits, logits = self.discriminator(seen)[0], self.discriminator(torch.cat([restored, known], dim=1))[0]
        loss = mean_inside(F.softplus(logits - true_logits), inside)
        if penalise:  # R1 (Mescheder et al. 2018), lazily (Karras et al. 2020)
            (slope,) = torch.autograd.grad((true_logits * inside).sum(), seen, create_graph=True)
            slope = slope[:, : truth.shape[1]].square().sum((1, 2, 3)) / inside.sum((1, 2, 3))
            loss = loss + EVERY * PENALTY / 2 * slope.mean()
        right = mean_inside((true_logits > logits).float(), inside)
        return {"discriminator_loss": loss, "told_apart": right}, len(truth)

    def discriminator_state(self, row):
        """For `reference`: whether the discriminator still teaches anything."""
        right = row.get("told_apart")
        if right is None:
            return ""
        warning = ": it wins, lower --adversarial" if right > WINS else ": it tells nothing apart" * (right < DIES)
        return f", discriminator right on {right:.0%}{warning}"
