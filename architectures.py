"""The networks.

Depixelation: (N, 2, H, W) -> (N, 1, H, W), float32. Input channel 0: the pixelated image, grey values in [0, 1]
(uint8 / 255). Channel 1: the known mask, 1 where the pixel is original, 0 where it is to be predicted. Output: the
restored image on the same scale.

OddUNet          ours: a U-Net that respects what is known; its filters are tied by mirroring, turning and negation
EquivariantUNet  the same, tied by mirroring and turning; ResidualUNet: with free filters, of earlier versions
DeePixV1         the winner of the 2023 challenge
BasicCNN         the course's reference
IdentityModel    the pixelated image itself: what doing nothing scores

UNet, for any task: residual blocks (He et al. 2016) at several resolutions (Ronneberger et al. 2015)
Denoising, (N, 1, H, W) -> the same: UNet; the exercise sheet's DenoisingCNN
Classification, (N, 1, 28, 28) in [0, 1] -> (N, classes), logits: ResidualCNN, ours; SimpleCNN, the sheet's kind
Super-resolution, (N, 3, H, W) in [0, 1] -> (N, 3, 2H, 2W): SubPixelResNet, ours; BasicSRModel, ResidualSRModel
"""

import torch
from torch import nn
from torch.nn import functional as F

from datasets import SIZE_RANGE
from symmetry import SYMMETRIES, odd, tie_filters, transform

# ------------------------------------------------------------------------------------------------ the block grid


def find_block_sizes(images, unknown, sizes):
    """The block size of each pixelated image, which the challenge does not give.

    It is the largest size for which all blocks of the grid anchored at the rectangle's top-left corner are constant,
    that is: along both axes the image changes only at multiples of the size.

    images: (N, H, W), any dtype. unknown: (N, H, W) bool, True inside the rectangle. sizes: candidates, a sequence.
    Returns (N,) int64. Where no candidate fits, it is the longer side of the image: the rectangle is one block.
    """
    candidates = torch.as_tensor(list(sizes), device=images.device)  # (S,)
    fits = torch.ones(len(images), len(candidates), dtype=torch.bool, device=images.device)
    for axis in (1, 2):
        length = images.shape[axis] - 1
        before, after = images.narrow(axis, 0, length), images.narrow(axis, 1, length)
        inside = unknown.narrow(axis, 0, length) & unknown.narrow(axis, 1, length)
        changes = ((before != after) & inside).any(dim=3 - axis)  # (N, length): between position and position + 1
        offset = _offsets(unknown, axis)[:, 1:]  # (N, length)
        allowed = offset[:, None] % candidates[None, :, None] == 0  # (N, S, length)
        fits &= (allowed | ~changes[:, None]).all(dim=2)
    largest = torch.where(fits, candidates, 0).amax(dim=1)
    return torch.where(largest > 0, largest, max(images.shape[1:]))


def _offsets(unknown, axis):
    """Position along axis (1: y, 2: x) relative to the rectangle's first row or column: (N, H or W) int64."""
    hit = unknown.any(dim=3 - axis)  # (N, H or W)
    return torch.arange(hit.shape[1], device=hit.device) - hit.int().argmax(dim=1, keepdim=True)


NEAR = 4  # pixels around the rectangle whose brightness and contrast are those of what is hidden
DEVIATION_OFFSET = 0.02  # 5 of 255 grey levels: where all is flat, noise is not to be blown up
PROJECTIONS = 10  # after which hardly any pixel leaves [0, 1] by more than what rounding takes


class BlockGrid:
    """The grid of blocks inside each image's rectangle, recovered from the image and its mask."""

    def __init__(self, images, unknown, sizes):
        """images: (N, 1, H, W). unknown: (N, 1, H, W) bool. sizes: candidates for the block size, a sequence."""
        self.unknown = unknown
        self.sizes = find_block_sizes(images[:, 0], unknown[:, 0], sizes)  # (N,)
        self.offsets = [_offsets(unknown[:, 0], axis) for axis in (1, 2)]  # (N, H), (N, W)
        self.rows, self.columns = (self._membership(offset) for offset in self.offsets)  # (N, K, H), (N, K, W)
        self.counts = self._sums(unknown.float())  # (N, 1, K, K)

    def _membership(self, offset):
        blocks = -(-offset.shape[1] // 2)  # a block has at least 2 pixels a side; a smaller size is no grid
        index = torch.div(offset, self.sizes[:, None], rounding_mode="floor")  # (N, L)
        return (index[:, None] == torch.arange(blocks, device=offset.device)[:, None]).float()  # (N, K, L)

    def _sums(self, maps):  # separable, so two small products with matrices of 0 and 1
        return (self.rows @ maps[:, 0] @ self.columns.mT)[:, None]  # (N, K, H) (N, H, W) (N, W, K) -> (N, 1, K, K)

    def spread(self, values):
        """One value per block, (N, 1, K, K), written to each of the block's pixels: (N, 1, H, W), 0 elsewhere."""
        return (self.rows.mT @ values[:, 0] @ self.columns)[:, None] * self.unknown

    def means(self, maps):
        """(N, 1, H, W) -> the map in which each unknown pixel holds the mean of its block, 0 elsewhere."""
        return self.spread(self._sums(maps * self.unknown) / self.counts.clamp(min=1))

    def surroundings(self, reach):
        """1 inside the rectangle and up to `reach` pixels around it, else 0: (N, 1, H, W) float32."""
        inside = []
        for axis, offset in zip((1, 2), self.offsets):
            extent = self.unknown[:, 0].any(dim=3 - axis).sum(dim=1, keepdim=True)
            inside.append(((offset >= -reach) & (offset < extent + reach)).float())
        return (inside[0][:, :, None] * inside[1][:, None, :])[:, None]

    def statistics(self, maps):
        """Mean and deviation, with an offset, of maps, (N, 1, H, W), in and near the rectangle: (N, 1, 1, 1) each."""
        near = self.surroundings(NEAR)
        near = near / near.sum((2, 3), keepdim=True).clamp(min=1)
        center = (maps * near).sum((2, 3), keepdim=True)
        return center, ((maps - center) ** 2 * near).sum((2, 3), keepdim=True).sqrt() + DEVIATION_OFFSET

    def within_range(self, images, means):
        """Images within [0, 1], as near as possible to these block means: alternates between the two conditions."""
        for _ in range(PROJECTIONS):
            images = images.clamp(0, 1)
            images = images + means - self.means(images)
        return images

    def expected_means(self, images):
        """The expected mean of each block before pixelation floored it, written to its pixels. (N, 1, H, W).

        For n pixels the mean is value + k / n with k = 0 ... n - 1 about equally likely: value + (n - 1) / (2 n).
        """
        counts = self.counts.clamp(min=1)
        return (images + self.spread((counts - 1) / (2 * counts)) / 255) * self.unknown


# ------------------------------------------------------------------------------------------------ the networks


class IdentityModel(nn.Module):
    """Returns the pixelated image: the challenge's zero-point mark."""

    def forward(self, inputs):
        return inputs[:, :1]


def _plain(a, b, channels, layers, activation):
    """From a to b channels: hidden layers of 3x3 kernels with activations, and one output layer."""
    widths = [a] + [channels] * layers
    hidden = [nn.Sequential(nn.Conv2d(m, n, 3, padding=1), activation()) for m, n in zip(widths, widths[1:])]
    return nn.Sequential(*hidden, nn.Conv2d(channels, b, 3, padding=1))


class BasicCNN(nn.Module):
    """The course's reference: hidden layers of 3x3 kernels with ReLU, one output layer. Its score is 200 points."""

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
    """Residual blocks at several resolutions, joined by skip connections that are added. Its output starts at zero.

    (N, in_channels, H, W) -> (N, out_channels, H, W); inside, H and W are padded to multiples of .multiple. channels:
    per stage; the first works at full resolution, each further one at half of that before. blocks: residual blocks per
    stage, on the way down and again on the way up, at the bottom once.
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
        if height % self.multiple or width % self.multiple:
            maps = F.pad(maps, (0, -width % self.multiple, 0, -height % self.multiple), "replicate")
        x, skips = self.first(maps), []  # (N, in_channels, H, W) -> (N, channels[0], H, W)
        for stage, reduce in zip(self.down, self.reduce):
            x = stage(x)
            skips.append(x)
            x = reduce(x)  # (N, a, h, w) -> (N, b, h / 2, w / 2)
        x = self.bottom(x)
        for stage, expand in zip(reversed(self.up), reversed(self.expand)):
            x = stage(F.pixel_shuffle(expand(x), 2) + skips.pop())  # (N, b, h / 2, w / 2) -> (N, a, h, w)
        return self.last(x)[:, :, :height, :width]  # (N, out_channels, H, W)


class ResidualUNet(UNet):
    """Our residual CNN: a U-Net on a window around the rectangle that predicts a residual on the pixelated image.

    Known pixels are returned as they are; if consistent, the mean of each block of the output is the block's pixelated
    value plus the expected loss of its flooring. The U-Net starts from a smooth interpolation with these means, and
    sees it at zero mean and unit deviation around the rectangle.

    channels, blocks: of the UNet. margin: how far the window reaches beyond the rectangle, in pixels, at least.
    size_range: smallest and largest block size that may occur. consistent: False where a block's value need not be its
    mean; then the U-Net alone decides what the means are.
    """

    SYMMETRIES = SYMMETRIES  # The block grid is dealt with outside of the U-Net, so what it sees may be turned.
    MAPS = 3, 1  # that the U-Net takes, and returns

    def __init__(
        self, channels=(32, 64, 96, 128), blocks=(4, 3, 2, 2), margin=8, size_range=SIZE_RANGE, consistent=True
    ):
        super().__init__(*self.MAPS, channels, blocks)
        if not 0 <= margin <= 1000:
            raise ValueError("margin must be 0 to 1000")
        self.margin, self.sizes, self.consistent = margin, range(size_range[0], size_range[1] + 1), consistent

    def window_side(self, extent):
        """Side of the window, in pixels, for a rectangle's width or height: an int, array or tensor of ints."""
        return -(-(extent + 2 * self.margin) // self.multiple) * self.multiple

    def forward(self, inputs, symmetries=(0,)):
        """The mean of the predictions in these symmetries of the square, numbers from 0 (as it is) to 7."""
        maps, unknown = inputs.float(), inputs[:, 1:2] == 0
        output = maps[:, :1].clone()
        starts, sides = zip(*(self._windows(unknown[:, 0], axis) for axis in (1, 2)))
        sides = torch.stack(sides, dim=1)  # (N, 2)
        for shape in sides.unique(dim=0):  # images with windows of one shape are restored together
            n = (sides == shape).all(dim=1).nonzero()[:, :, None]  # (M, 1, 1)
            rows, columns = (a[n] + torch.arange(s, device=a.device) for a, s in zip(starts, shape.tolist()))
            at = n, rows.mT, columns  # (M, h, w) of (N, H, W)
            window = maps.movedim(1, 3)[at].movedim(3, 1).contiguous()  # (M, C, h, w)
            output[:, 0][at] = self._restore(window, unknown[:, 0][at][:, None], symmetries)[:, 0]
        return output

    def _windows(self, unknown, axis):
        """(start, side) of each image's window along axis (1: y, 2: x), (N,) each. unknown: (N, H, W)."""
        length = unknown.shape[axis]
        hit = unknown.any(dim=3 - axis).int()  # (N, H or W)
        first, extent = hit.argmax(dim=1), length - hit.flip(1).argmax(dim=1) - hit.argmax(dim=1)
        side = self.window_side(extent).clamp(max=length)
        return (first + torch.div(extent - side, 2, rounding_mode="floor")).clamp(min=0).minimum(length - side), side

    def _restore(self, maps, unknown, symmetries):
        """The restored windows, (N, 1, h, w), of inputs, (N, 2, h, w), and unknown, (N, 1, h, w) bool."""
        images = maps[:, :1]
        with torch.autocast(images.device.type, enabled=False):  # grey values need more than the 8 bits of bfloat16
            grid = BlockGrid(images, unknown, self.sizes)
            means = grid.expected_means(images)
            guess = interpolate(images, means, grid)
            center, deviation = grid.statistics(guess)
            maps = torch.cat([(guess - center) / deviation, (images - center) / deviation, 1 - unknown.float()], dim=1)
        outputs = [transform(self.residual, maps, symmetry) for symmetry in symmetries]
        residual = guess + deviation * sum(outputs) / len(outputs)
        with torch.autocast(images.device.type, enabled=False):
            restored = means + residual - grid.means(residual) if self.consistent else residual
            if not self.training:
                restored = grid.within_range(restored, means) if self.consistent else restored.clamp(0, 1)
            return torch.where(unknown, restored, images)

    def residual(self, maps):
        """What to add, (N, 1, h, w), of normalised maps, (N, 3, h, w): the interpolation, the image, what is known."""
        return super().forward(maps)


class EquivariantUNet(ResidualUNet):
    """The same with equivariant filters; channels: multiples of 8."""

    SYMMETRIES = (0,)  # so one view is worth eight
    SIGNS = ()  # of an odd network: for each map that it is given -1 if negation changes it, else 1

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        tie_filters(self, odd=bool(self.SIGNS))


class OddUNet(EquivariantUNet):
    """The same, and odd: for a negated image the residual is negated. channels: multiples of 16."""

    MAPS = 6, 2  # each map and its negative, or its two parities; what is known twice
    SIGNS = -1, -1, 1

    def residual(self, maps):
        return odd(super().residual, maps, self.SIGNS)


def interpolate(images, means, grid, deviations=(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1)):
    """A smooth image with the given block means: blurred, put back onto what is known, and again, ever more finely.

    images, means: (N, 1, H, W), means as from grid.expected_means. deviations: of the Gaussian blurs, in pixels.
    Alternating projections; the fixed point is a membrane stretched over the known pixels and the block means.
    """
    guess = images
    blurs = {deviation: [_blur_matrix(n, deviation, images) for n in images.shape[2:]] for deviation in set(deviations)}
    for vertical, horizontal in (blurs[deviation] for deviation in deviations):
        blurred = vertical @ guess @ horizontal.T  # (H, H) (N, 1, H, W) (W, W)
        guess = torch.where(grid.unknown, means + blurred - grid.means(blurred), images)
    return guess


def _blur_matrix(n, deviation, like):
    """Gaussian blur of n samples as an (n, n) matrix; at the ends the weights that fall outside are left out."""
    position = torch.arange(n, dtype=like.dtype, device=like.device)
    weights = torch.exp(-(((position[:, None] - position) / deviation) ** 2) / 2)
    return weights / weights.sum(dim=1, keepdim=True)


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
    """The exercise sheet's encoder and decoder: (N, channels, H, W) -> the same, H and W multiples of 4. skip: the
    output is X + network(X), so that the layers learn the noise, negated, and not the image."""

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


class SimpleCNN(nn.Module):
    """The exercise sheet's kind: two convolutions, each with pooling, and two linear layers."""

    def __init__(self, channels=(32, 64), hidden=128, classes=10):
        super().__init__()
        pairs = (1, channels[0]), channels  # 28 -> 14 -> 7
        hidden_layers = [m for a, b in pairs for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
        linear = nn.Linear(49 * channels[1], hidden), nn.ReLU(), nn.Linear(hidden, classes)
        self.layers = nn.Sequential(*hidden_layers, nn.Flatten(), *linear)

    def forward(self, images):
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


class ResidualCNN(nn.Module):
    """Ours: residual blocks at a half and, after pooling, at a quarter of the resolution.

    channels, blocks: of each resolution. Only the first convolution, of one channel, has a stride: on a CPU the
    gradient of a strided one of many channels takes four times as long for its FLOPs.
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

    def forward(self, images):
        maps = self.layers(images)  # (N, 1, 28, 28) -> (N, channels[-1], 7, 7)
        return self.last(maps.amax((2, 3)))  # (N, classes)


class Interpolation(nn.Module):
    """Upsampling by nearest, bilinear or bicubic interpolation, the last with the coefficient -0.5 (Keys 1981)."""

    reach = 3  # here and below: how many pixels of the input, to each side, a pixel of the output depends on

    def __init__(self, kind="bicubic"):
        super().__init__()
        self.kind = kind

    def forward(self, images):
        # Bicubic without antialias would have the coefficient -0.75; with it, it is that of Pillow and MATLAB.
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
    """Ours: residual blocks at low resolution, a pixel shuffle, all added to the bicubic image, from which it starts.

    Like EDSR (Lim et al. 2017) without normalisation, like ESPCN (Shi et al. 2016) with the new pixels as channels.
    consistent: the mean of 2x2 pixels of the output is the pixel of the input, as it is where the input was made by
    bilinear downscaling without antialiasing. symmetries: the numbers, 0 (unchanged) to 7, of those to average over.
    """

    def __init__(self, channels=64, blocks=8, consistent=False):
        super().__init__()
        self.consistent, self.reach, self.symmetries = consistent, 2 * blocks + 4, (0,)
        self.upsample = Interpolation()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.last = nn.Conv2d(channels, 12, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, images):
        residuals = [transform(self._residual, images - 0.5, symmetry) for symmetry in self.symmetries]
        output = self.upsample(images) + sum(residuals) / len(residuals)
        return output + F.interpolate(images - F.avg_pool2d(output, 2), scale_factor=2) if self.consistent else output

    def _residual(self, maps):
        return F.pixel_shuffle(self.last(self.body(self.first(maps))), 2)  # (N, 12, H, W) -> (N, 3, 2H, 2W)


BLOCKS = (ResidualBlock, DeePixBlock, NormalizedBlock)  # what --summary lists as a whole
