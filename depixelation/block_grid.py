"""The grid of blocks in the rectangle of a pixelated image: block size, means, and a smooth image with these means."""

import torch


def find_block_sizes(images, unknown, sizes):
    """The block size of each pixelated image, which the challenge does not give.

    It is the largest size for which all blocks are constant, with the grid anchored at the rectangle's top-left corner.
    Equivalently, the image changes along both axes only at multiples of the size.

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


NEAR = 4  # pixels around the rectangle that tell the brightness and contrast of the hidden ones
DEVIATION_OFFSET = 0.02  # 5 of 255 grey levels, so that noise in flat areas is not amplified
PROJECTIONS = 10  # then hardly any pixel leaves [0, 1] by more than rounding hides


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
        """Bring images into [0, 1] and close to these block means, by alternating projections."""
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


def interpolate(images, means, grid, deviations=(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1)):
    """A smooth image with the given block means: blur, restore known pixels and means, repeat with finer blurs.

    images, means: (N, 1, H, W), means as from grid.expected_means. deviations: of the Gaussian blurs, in pixels.
    These are alternating projections; their fixed point is a membrane over the known pixels and the block means.
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
