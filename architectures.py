"""The networks.

Depixelation: (N, 2, H, W) -> (N, 1, H, W), float32. Input channel 0: the pixelated image, grey values in [0, 1]
(uint8 / 255). Channel 1: the known mask, 1 where the pixel is original, 0 where it is to be predicted. Output: the
restored image on the same scale.

OddUNet          ours: a U-Net that keeps known pixels; its filters are tied by reflection, rotation and negation
EquivariantUNet  the same, tied by reflection and rotation; ResidualUNet: with untied filters, of earlier versions
OddFlowUNet      the velocity of a flow from OddUNet's restoration to a likely original
DeePixV1         the winner of the 2023 challenge
BasicCNN         the course's reference
IdentityModel    returns the pixelated image: the score of doing nothing

UNet, for any task: residual blocks (He et al. 2016) at several resolutions (Ronneberger et al. 2015)
Denoising, (N, 1, H, W) -> the same: UNet; the exercise sheet's DenoisingCNN
Classification, (N, 1, 28, 28) in [0, 1] -> (N, classes), logits: ResidualCNN, ours; SimpleCNN, the sheet's kind
Super-resolution, (N, 3, H, W) in [0, 1] -> (N, 3, 2H, 2W): EquivariantSubPixelResNet, ours; SubPixelResNet, with untied
filters; BasicSRModel, ResidualSRModel
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from datasets import SIZE_RANGE
from depixelation.block_grid import BlockGrid, interpolate
from depixelation.symmetry import SYMMETRIES, each, odd, tie_filters, transform

# ------------------------------------------------------------------------------------------------ the networks


class IdentityModel(nn.Module):
    """Returns the pixelated image; its score is worth 0 points."""

    def forward(self, inputs):
        return inputs[:, :1]


def _plain(a, b, channels, layers, activation):
    """From a to b channels: hidden layers of 3x3 kernels with activations, and one output layer."""
    widths = [a] + [channels] * layers
    hidden = [nn.Sequential(nn.Conv2d(m, n, 3, padding=1), activation()) for m, n in zip(widths, widths[1:])]
    return nn.Sequential(*hidden, nn.Conv2d(channels, b, 3, padding=1))


class BasicCNN(nn.Module):
    """The course's reference: hidden layers of 3x3 kernels with ReLU, one output layer. It is worth 200 points."""

    def __init__(self, channels=32, layers=5):
        super().__init__()
        self.layers = _plain(2, 1, channels, layers, nn.ReLU)

    def forward(self, inputs):
        return torch.where(inputs[:, 1:] > 0, inputs[:, :1], self.layers(inputs).float())


class ResidualBlock(nn.Module):
    """conv - ReLU - conv on a residual branch that starts at zero; no normalisation layers."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU()  # a module, so that tie_filters can replace it
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x):
        return x + self.conv2(self.relu(self.conv1(x)))


class UNet(nn.Module):
    """Residual blocks at several resolutions, joined by additive skip connections. The output starts at zero.

    (N, in_channels, H, W) -> (N, out_channels, H, W); inside, H and W are padded to multiples of .multiple.
    channels: per stage, the first at full resolution, each further one at half the resolution before.
    blocks: residual blocks per stage, both on the way down and on the way up; the bottom has them once.
    """

    def __init__(self, in_channels=1, out_channels=1, channels=(32, 64, 96), blocks=(2, 2, 2)):
        super().__init__()
        if len(blocks) != len(channels):
            raise ValueError(f"blocks must have a number for each of the {len(channels)} stages")
        self.multiple = 2 ** (len(channels) - 1)  # so that every stage halves evenly
        stages = list(zip(channels, channels[1:], blocks))
        self.first = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(self._stage(a, n) for a, _, n in stages)
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b, _ in stages)
        self.bottom = self._stage(channels[-1], blocks[-1])
        self.expand = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b, _ in stages)
        self.up = nn.ModuleList(self._stage(a, n) for a, _, n in stages)
        self.last = nn.Conv2d(channels[0], out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @staticmethod
    def _stage(channels, blocks):
        return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, maps):
        height, width = maps.shape[2:]
        below, right = -height % self.multiple, -width % self.multiple
        maps = F.pad(maps, (0, right, 0, below), "replicate") if below or right else maps
        return self.stages(maps)[:, :, :height, :width]  # (N, out_channels, H, W)

    def stages(self, maps):  # a tensor, or Parities; H and W are multiples of .multiple
        x, skips = self.first(maps), []  # (N, in_channels, H, W) -> (N, channels[0], H, W)
        for stage, reduce in zip(self.down, self.reduce):
            x = stage(x)
            skips.append(x)
            x = reduce(x)  # (N, a, h, w) -> (N, b, h / 2, w / 2)
        x = self.bottom(x)
        for stage, expand in zip(reversed(self.up), reversed(self.expand)):
            x = stage(each(F.pixel_shuffle, expand(x), 2) + skips.pop())  # (N, b, h / 2, w / 2) -> (N, a, h, w)
        return self.last(x)


class ResidualUNet(UNet):
    """Our residual CNN: in a window around the rectangle, a U-Net adds a residual to a smooth interpolation.

    Known pixels are returned unchanged. If consistent, the mean of each output block is its pixelated value plus the
    expected loss by flooring. The interpolation has these means, too. The U-Net sees it at zero mean and unit deviation
    around the rectangle.

    channels, blocks: of the UNet. margin: the least number of pixels by which the window exceeds the rectangle.
    size_range: smallest and largest block size that may occur. consistent: False where a block's value need not be its
    mean; then the U-Net alone decides the means.
    """

    VIEWS = SYMMETRIES  # the block grid is handled outside of the U-Net, so its input may be turned
    MAPS = 3, 1  # channels that the U-Net takes and returns

    def __init__(
        self, channels=(32, 64, 96, 128), blocks=(4, 3, 2, 2), margin=8, size_range=SIZE_RANGE, consistent=True
    ):
        super().__init__(*self.MAPS, channels, blocks)
        if not 0 <= margin <= 1000:
            raise ValueError("margin must be 0 to 1000")
        self.margin, self.sizes, self.consistent = margin, range(size_range[0], size_range[1] + 1), consistent
        self.narrowed = 0  # pixels by which the margin is reduced, early in training

    def window_side(self, extent):
        """Side of the full window, in pixels, for a rectangle's width or height: an int, array or tensor of ints."""
        return -(-(extent + 2 * self.margin) // self.multiple) * self.multiple

    def forward(self, inputs, views=(0,)):
        """The mean of the predictions in `views`, symmetries of the square from 0 (unchanged) to 7."""
        maps, unknown = inputs.float(), inputs[:, 1:2] == 0
        output = maps[:, :1].clone()
        starts, sides = zip(*(self._windows(unknown[:, 0], axis) for axis in (1, 2)))
        sides = torch.stack(sides, dim=1)  # (N, 2)
        for shape in sides.unique(dim=0):  # images with windows of one shape are restored together
            n = (sides == shape).all(dim=1).nonzero()[:, :, None]  # (M, 1, 1)
            rows, columns = (a[n] + torch.arange(s, device=a.device) for a, s in zip(starts, shape.tolist()))
            at = n, rows.mT, columns  # (M, h, w) of (N, H, W)
            window = maps.movedim(1, 3)[at].movedim(3, 1).contiguous()  # (M, C, h, w)
            output[:, 0][at] = self._restore(window, unknown[:, 0][at][:, None], views)[:, 0]
        return output

    def _windows(self, unknown, axis):
        """(start, side) of each image's window along axis (1: y, 2: x), (N,) each. unknown: (N, H, W)."""
        length = unknown.shape[axis]
        hit = unknown.any(dim=3 - axis).int()  # (N, H or W)
        first, extent = hit.argmax(dim=1), length - hit.flip(1).argmax(dim=1) - hit.argmax(dim=1)
        side = self.window_side(extent - 2 * min(self.narrowed, self.margin)).clamp(max=length)
        return (first + torch.div(extent - side, 2, rounding_mode="floor")).clamp(min=0).minimum(length - side), side

    def _restore(self, maps, unknown, views):
        """The restored windows, (N, 1, h, w). maps: the inputs, (N, 2, h, w). unknown: (N, 1, h, w) bool."""
        images = maps[:, :1]
        with torch.autocast(images.device.type, enabled=False):  # grey values need more than the 8 bits of bfloat16
            grid = BlockGrid(images, unknown, self.sizes)
            means = grid.expected_means(images)
            guess = interpolate(images, means, grid)
            center, deviation = grid.statistics(guess)
            maps = torch.cat([(guess - center) / deviation, (images - center) / deviation, 1 - unknown.float()], dim=1)
        outputs = [transform(self.residual, maps, symmetry) for symmetry in views]
        residual = guess + deviation * sum(outputs) / len(outputs)
        with torch.autocast(images.device.type, enabled=False):
            restored = means + residual - grid.means(residual) if self.consistent else residual
            if not self.training:
                restored = grid.within_range(restored, means) if self.consistent else restored.clamp(0, 1)
            return torch.where(unknown, restored, images)

    def residual(self, maps):
        """The residual, (N, 1, h, w), for normalised maps, (N, 3, h, w): interpolation, image and known mask."""
        return super().forward(maps)


class EquivariantUNet(ResidualUNet):
    """The same with equivariant filters; channels: multiples of 8."""

    VIEWS = (0,)  # all eight give the same prediction
    SIGNS = ()  # of an odd network's input maps: -1 where negating the image negates the map, else 1

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        tie_filters(self, odd=bool(self.SIGNS))


class OddUNet(EquivariantUNet):
    """The same, and odd: negating the image negates the residual. channels: multiples of 16."""

    MAPS = 6, 2  # each map and its negative, or its two parities; the known mask twice
    SIGNS = -1, -1, 1

    def stages(self, maps):
        return odd(super().stages, maps, self.SIGNS)


FLOW_STEPS = 3  # of the midpoint rule; fewer give smoother areas
FLOW_POWER = 1.5  # steps begin at (i / steps)^1.5: shorter at first, where the flow bends most
FLOW_NOISE = 0.25  # deviation of the initial noise, relative to that of the grey values in and near the rectangle


def without_means(grid, maps):
    """Subtract the mean of each block of the BlockGrid; 0 outside the rectangles. (N, 1, H, W) -> the same shape."""
    return maps * grid.unknown - grid.means(maps)


class FlowUNet(ResidualUNet):
    """The flow's velocity, (N, 1, H, W), per unit of time. Inputs, (N, 5, H, W): image, known mask, restoration,
    current state, time from 0 to 1."""

    MAPS = 4, 1

    def forward(self, inputs, views=(0,)):
        return super().forward(inputs, views) * (inputs[:, 1:2] == 0)

    def _restore(self, maps, unknown, views):
        image, restored, now, time = maps[:, :1], *maps[:, 2:].split(1, dim=1)
        with torch.autocast(maps.device.type, enabled=False):
            grid = BlockGrid(image, unknown, self.sizes)
            center, deviation = grid.statistics(restored)
            seen = [(restored - center) / deviation, (now - center) / deviation, 1 - unknown.float(), time]
        outputs = [transform(self.residual, torch.cat(seen, dim=1), symmetry) for symmetry in views]
        with torch.autocast(maps.device.type, enabled=False):
            return deviation * without_means(grid, sum(outputs) / len(outputs))

    def start(self, inputs, restored, noise):
        """(the flow's initial state, the deviation that serves as the unit of errors, the BlockGrid)."""
        with torch.autocast(inputs.device.type, enabled=False):
            grid = BlockGrid(inputs[:, :1], inputs[:, 1:2] == 0, self.sizes)
            deviation = grid.statistics(restored)[1]
            return restored + FLOW_NOISE * deviation * without_means(grid, noise), deviation, grid

    def sample(self, inputs, restored, seed=0, steps=None):
        """Draw likely originals, (N, 1, H, W). inputs: (N, 2, H, W). restored: an accurate network's output for them.

        They keep the block means of the restoration. Each seed gives other originals. All images of a batch get the
        same noise, so no result depends on the other images.
        """
        noise = torch.randn((1, 1, *inputs.shape[2:]), generator=torch.Generator().manual_seed(seed))
        now, _, grid = self.start(inputs, restored, noise.to(inputs.device))
        steps = steps or FLOW_STEPS
        for begin, end in itertools.pairwise((i / steps) ** FLOW_POWER for i in range(steps + 1)):
            half = (end - begin) / 2
            middle = now + half * self._velocity(inputs, restored, now, begin)
            now = now + 2 * half * self._velocity(inputs, restored, middle, begin + half)
        with torch.autocast(inputs.device.type, enabled=False):
            now = grid.within_range(now, grid.means(restored.clamp(0, 1)))
        return torch.where(grid.unknown, now, restored)

    def _velocity(self, inputs, restored, now, time):
        return self(torch.cat([inputs, restored, now, torch.full_like(now, time)], dim=1))


class OddFlowUNet(FlowUNet, OddUNet):
    """The same with filters tied by the square's symmetries and by negation. channels: multiples of 16."""

    MAPS = 8, 2
    SIGNS = -1, -1, 1, 1


class DeePixBlock(nn.Module):
    """Two convolutions with a skip connection at width a, then a convolution to width b."""

    def __init__(self, a, b, kernel):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(a, a, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(a)
        self.conv2, self.norm2 = nn.Conv2d(a, a, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(a)
        self.conv3, self.norm3 = nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(b)

    def forward(self, x):
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.norm3(self.conv3(F.relu(x + residual))))


class DeePixV1(nn.Module):
    """Rank 1 of 2023: a plain residual CNN at full resolution, 2.4M parameters in its winning shape.

    shape: log2 of the channels before the first and after each block. kernels: the kernel sizes of the first and the
    output convolution; the blocks' sizes are interpolated between them and floored to odd.
    """

    def __init__(self, shape=(5, 5, 6, 6, 7, 7, 8), kernels=(3, 5)):
        super().__init__()
        blocks = len(shape) - 1
        first, last = kernels
        sizes = [(int(first + (last - first) * i / max(blocks - 1, 1)) - 1) // 2 * 2 + 1 for i in range(blocks)]
        self.first = nn.Sequential(
            nn.Conv2d(2, 2 ** shape[0], first, padding=first // 2, bias=False), nn.BatchNorm2d(2 ** shape[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(DeePixBlock(2**a, 2**b, k) for a, b, k in zip(shape, shape[1:], sizes)))
        self.last = nn.Sequential(nn.Conv2d(2 ** shape[-1], 1, last, padding=last // 2, bias=False), nn.BatchNorm2d(1))

    def forward(self, inputs):
        restored = torch.sigmoid(self.last(self.blocks(self.first(inputs))).float())
        return torch.where(inputs[:, 1:] > 0, inputs[:, :1], restored)


# ------------------------------------------------------------------------------------------------ for other tasks


class DenoisingCNN(nn.Module):
    """The exercise sheet's encoder and decoder: (N, channels, H, W) -> the same, H and W multiples of 4.

    skip: the output is X + network(X), so the layers learn the negated noise instead of the image.
    """

    def __init__(self, channels=1, width=16, skip=False):
        super().__init__()
        self.skip = skip
        up = {"stride": 2, "padding": 1, "output_padding": 1}  # exactly twice the side: 7 -> 14 -> 28
        hidden = (
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ConvTranspose2d(width, width, 3, **up),
            nn.ConvTranspose2d(width, width, 3, **up),
        )
        layers = [module for layer in hidden for module in (layer, nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, images):
        return images + self.layers(images) if self.skip else self.layers(images)


class Classifier(nn.Module):
    """Base class of classifiers. A subclass defines `logits`: (N, 1, 28, 28) -> (N, classes)."""

    VIEWS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))  # the image shifted by rows and columns
    VIEWS = tuple((*shift, mirrored) for shift in VIEWS for mirrored in (False, True))  # and mirrored

    def forward(self, images, views=()):
        """The logits, or their mean for several views of the images."""
        if not views:
            return self.logits(images)
        seen = (F.pad(images.flip(3) if mirrored else images, (x, -x, y, -y)) for y, x, mirrored in views)
        return sum(map(self.logits, seen)) / len(views)


class SimpleCNN(Classifier):
    """The exercise sheet's kind: two convolutions, each with pooling, and two linear layers."""

    def __init__(self, channels=(32, 64), hidden=128, classes=10):
        super().__init__()
        pairs = (1, channels[0]), channels  # 28 -> 14 -> 7
        hidden_layers = [m for a, b in pairs for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
        linear = nn.Linear(49 * channels[1], hidden), nn.ReLU(), nn.Linear(hidden, classes)
        self.layers = nn.Sequential(*hidden_layers, nn.Flatten(), *linear)

    def logits(self, images):
        return self.layers(images)


class NormalizedBlock(nn.Module):
    """ReLU(x + branch); the branch, two 3x3 convolutions with batch normalisation, starts at zero (He et al. 2016)."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x):
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ResidualCNN(Classifier):
    """Ours: residual blocks at a half and, after pooling, at a quarter of the resolution.

    channels, blocks: per resolution. Only the first convolution, which has one input channel, has a stride: on a CPU
    the gradient of a strided convolution of many channels takes four times as long per FLOP.
    """

    def __init__(self, channels=(64, 96), blocks=(1, 2), classes=10):
        super().__init__()
        if len(blocks) != len(channels):
            raise ValueError(f"blocks must have a number for each of the {len(channels)} resolutions")
        layers = self._convolution(1, channels[0], 4, 2)  # 28 -> 14
        for i, (width, count) in enumerate(zip(channels, blocks)):
            if i:
                layers += [nn.MaxPool2d(2), *self._convolution(channels[i - 1], width, 3, 1)]  # 14 -> 7
            layers += [NormalizedBlock(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(channels[-1], classes)
        nn.init.zeros_(self.last.weight)

    @staticmethod
    def _convolution(a, b, kernel, stride):
        return [nn.Conv2d(a, b, kernel, stride, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    def logits(self, images):
        maps = self.layers(images)  # (N, 1, 28, 28) -> (N, channels[-1], 7, 7)
        return self.last(maps.amax((2, 3)))  # (N, classes)


class Interpolation(nn.Module):
    """Upsampling by nearest, bilinear or bicubic interpolation, the last with the coefficient -0.5 (Keys 1981)."""

    reach = 3  # here and below: how many input pixels, to each side, an output pixel depends on

    def __init__(self, kind="bicubic"):
        super().__init__()
        self.kind = kind

    def forward(self, images):
        # Without antialias, bicubic has the coefficient -0.75; with it, that of Pillow and MATLAB.
        return F.interpolate(images, scale_factor=2, mode=self.kind, antialias=self.kind == "bicubic")


class BasicSRModel(nn.Module):
    """The exercise sheet's: bilinear upsampling, then twelve convolutions at full size; 372,803 parameters."""

    def __init__(self, channels=64, layers=10):
        super().__init__()
        self.upsample = Interpolation("bilinear")
        self.layers = _plain(3, 3, channels, layers + 1, nn.LeakyReLU)
        self.reach = layers // 2 + 3

    def forward(self, images):
        return self.layers(self.upsample(images))


class ResidualSRModel(BasicSRModel):
    """The same, added to the upsampled image."""

    def forward(self, images):
        upsampled = self.upsample(images)
        return upsampled + self.layers(upsampled)


class SubPixelResNet(nn.Module):
    """Ours: residual blocks at low resolution and a pixel shuffle add to the bicubic image, from which it starts.

    No normalisation, as in EDSR (Lim et al. 2017); new pixels as channels, as in ESPCN (Shi et al. 2016).
    consistent: the mean of each 2x2 output pixels equals their input pixel. This holds for inputs made by bilinear
    downscaling without antialiasing.
    """

    VIEWS = SYMMETRIES

    def __init__(self, channels=64, blocks=8, consistent=False):
        super().__init__()
        self.consistent, self.reach = consistent, 2 * blocks + 4
        self.upsample = Interpolation()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.last = nn.Conv2d(channels, 12, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, images, views=(0,)):
        """The mean of the predictions in `views`, symmetries of the square from 0 (unchanged) to 7."""
        residuals = [transform(self._residual, images - 0.5, symmetry) for symmetry in views]
        output = self.upsample(images) + sum(residuals) / len(residuals)
        return output + F.interpolate(images - F.avg_pool2d(output, 2), scale_factor=2) if self.consistent else output

    def _residual(self, maps):
        return F.pixel_shuffle(self.last(self.body(self.first(maps))), 2)  # (N, 12, H, W) -> (N, 3, 2H, 2W)


class EquivariantSubPixelResNet(SubPixelResNet):
    """The same with filters tied by the square's symmetries. channels: multiples of 8."""

    VIEWS = (0,)  # all eight give the same prediction

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        tie_filters(self, shuffled="last")


BLOCKS = (ResidualBlock, DeePixBlock, NormalizedBlock)  # --summary lists each as a whole
