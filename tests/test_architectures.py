"""The block grid, what our network guarantees whatever its weights, and the shapes that the challenge's facts fix."""

import numpy as np
import pytest
import torch

from architectures import BasicCNN, DeePixV1, OddUNet, ResidualUNet, UNet
from datasets import draw_rectangle, prepare_image
from depixelation.block_grid import BlockGrid, find_block_sizes, interpolate
from depixelation.engine.predictor import Predictor
from depixelation.engine.restoration import restore, rmse_per_image, to_inputs
from depixelation.images.synthetic import synthetic_image
from depixelation.mosaics.rectangle_tasks import NETWORKS, training_loss
from depixelation.symmetry import transform

SIZES = range(4, 17)


def pixelate(images, rectangles):
    """Tensors (N, 1, H, W) of pixelated images and known arrays."""
    pairs = [prepare_image(image[None], *rectangle)[:2] for image, rectangle in zip(images, rectangles)]
    return tuple(torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs))


def cases(n, seed, side=64, smooth=False):
    """n pixelated images of noise, or of the synthetic source, with rectangles as in the test set."""
    rng = np.random.default_rng(seed)
    rectangles = [draw_rectangle(rng, side, side, (4, 32), (4, 32), (4, 16)) for _ in range(n)]
    images = [
        synthetic_image(seed, i, side) if smooth else rng.integers(0, 256, (side, side), dtype=np.uint8)
        for i in range(n)
    ]
    return np.stack(images), rectangles, *pixelate(images, rectangles)


def loose_init(network, seed=0):
    """Weights at which the network does something: the residual branches start at zero."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def naive_block_size(image, known):
    """The definition, in loops: the largest size whose blocks, from the rectangle's corner, are all constant."""
    rows, columns = np.nonzero(~known)
    area = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return max(
        size
        for size in SIZES
        if all(
            np.ptp(area[i : i + size, j : j + size]) == 0
            for i in range(0, len(area), size)
            for j in range(0, area.shape[1], size)
        )
    )


@pytest.mark.parametrize("smooth, n", [(False, 2000), (True, 400)])
def test_block_grid_is_recovered(smooth, n):
    _, rectangles, images, known = cases(n, 1, smooth=smooth)
    found = find_block_sizes(images[:, 0], ~known[:, 0], SIZES).tolist()
    width, height, size = np.array(rectangles).T[2:]
    for i in range(0, n, 10):
        assert found[i] == naive_block_size(images[i, 0].numpy(), known[i, 0].numpy())
    # A larger size than the true one is found only where it cuts the rectangle into the same constant blocks.
    right = np.array(found) == size
    one_block = (size >= width) & (size >= height)
    assert (np.array(found) >= size).all() and (right | one_block).mean() > (0.9 if smooth else 0.99)
    assert (np.array(found)[one_block] == 16).all()


def test_grid_where_nothing_fits_and_where_nothing_is_unknown():
    images = torch.arange(64 * 64).reshape(1, 64, 64)
    unknown = torch.zeros(1, 64, 64, dtype=torch.bool)
    unknown[:, 10:30, 5:25] = True
    assert find_block_sizes(images, unknown, SIZES).tolist() == [64]
    outputs = loose_init(ResidualUNet())(
        to_inputs(torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64, dtype=torch.bool))
    )
    assert not outputs.any()


def test_block_means_against_loops():
    images, rectangles, pixelated, known = cases(50, 2)
    grid = BlockGrid(pixelated, ~known, SIZES)
    values = torch.rand(50, 1, 64, 64)
    means, expected_means = grid.means(values), grid.expected_means(pixelated.float() / 255)
    for i, (x, y, width, height, _) in enumerate(rectangles):
        size = int(grid.sizes[i])
        for top in range(y, y + height, size):
            for left in range(x, x + width, size):
                block = i, 0, slice(top, min(top + size, y + height)), slice(left, min(left + size, x + width))
                n = values[block].numel()
                assert torch.allclose(means[block], values[block].mean(), atol=1e-6)
                assert torch.allclose(expected_means[block] * 255, pixelated[block] + (n - 1) / (2 * n), atol=1e-4)
    assert not means[known].any()
    near = torch.zeros(50, 1, 64, 64)
    for i, (x, y, width, height, _) in enumerate(rectangles):
        near[i, 0, max(0, y - 4) : y + height + 4, max(0, x - 4) : x + width + 4] = 1
    assert torch.equal(grid.surroundings(4), near)


def test_our_network_keeps_known_pixels_and_block_means():
    images, _, pixelated, known = cases(100, 3, smooth=True)
    network = loose_init(ResidualUNet(channels=(16, 32), blocks=(1, 1)))
    inputs = to_inputs(pixelated, known)
    for training in (True, False):
        outputs = network.train(training)(inputs).detach()
        assert torch.equal(outputs[known], inputs[:, :1][known])
        changed = (outputs - inputs[:, :1])[~known].abs() * 255
        assert changed.mean() > 2  # it does predict something
        grid = BlockGrid(pixelated, ~known, SIZES)
        assert (grid.means(outputs) - grid.expected_means(inputs[:, :1])).abs().max() * 255 < (
            1e-2 if training else 0.1
        )
    predictions = restore(Predictor(network, torch.device("cpu")), pixelated, known)
    assert predictions.dtype == torch.uint8 and torch.equal(predictions[known], pixelated[known])
    # The floor, 0.5 at most, and the rounding of the pixels, whose mean is below 0.5.
    assert (grid.means(predictions.float()) - grid.means(pixelated.float())).abs().max() <= 1


def test_block_means_are_free_where_a_network_need_not_keep_them():
    _, _, pixelated, known = cases(20, 3, smooth=True)
    inputs, grid = to_inputs(pixelated, known), BlockGrid(pixelated, ~known, SIZES)
    network = loose_init(ResidualUNet(channels=(16, 32), blocks=(1, 1), consistent=False)).eval()
    outputs = network(inputs).detach()
    assert torch.equal(outputs[known], inputs[:, :1][known]) and 0 <= outputs.min() and outputs.max() <= 1
    off = (grid.means(outputs) - grid.expected_means(inputs[:, :1]))[~known] * 255
    assert off.abs().mean() > 1
    for weights in network.last.parameters():  # then it adds nothing to the interpolation, which keeps them
        torch.nn.init.zeros_(weights)
    off = (grid.means(network(inputs)) - grid.expected_means(inputs[:, :1]))[~known] * 255
    assert off.abs().median() < 0.1


def test_interpolation_halves_the_way_to_a_trained_network():
    images, _, pixelated, known = cases(300, 4, smooth=True)
    grid, inputs = BlockGrid(pixelated, ~known, SIZES), to_inputs(pixelated, known)
    guess = interpolate(inputs[:, :1], grid.expected_means(inputs[:, :1]), grid)
    truth = torch.from_numpy(images)[:, None].float() / 255
    before, after = (rmse_per_image(x, truth, known).mean() for x in (inputs[:, :1], guess))
    assert after < 0.85 * before


@pytest.mark.parametrize("kind", [ResidualUNet, OddUNet])
@pytest.mark.parametrize("height, width", [(64, 64), (40, 52), (33, 71), (120, 90)])
def test_other_image_sizes_and_large_rectangles(height, width, kind):
    network = loose_init(kind(channels=(16, 32, 32), blocks=(1, 1, 1)))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, height, width), dtype=np.uint8)
    for rectangle in ((2, 3, 12, 20, 5), (0, 0, width, height, 16), (width - 9, height - 7, 9, 7, 4)):
        pixelated, known = pixelate(images, [rectangle] * 2)
        outputs = network(to_inputs(pixelated, known))
        assert outputs.shape == pixelated.shape and torch.equal(outputs[known] * 255, pixelated[known].float())
        assert not torch.equal(outputs, pixelated / 255)


def test_what_lies_beyond_an_edge_is_not_taken_as_known():
    """Where sides are no multiple of 8, too, an area at two edges is restored as its mirror image at the others."""
    ramp = (np.arange(61)[:, None] * 2 + np.arange(70)).astype(np.uint8)
    pixelated, known = pixelate(np.stack([ramp] * 2), [(50, 41, 20, 20, 5)] * 2)
    pixelated, known = (torch.cat([a[:1], a[1:].flip(2, 3)]) for a in (pixelated, known))
    network = ResidualUNet(channels=(8, 8, 8, 8), blocks=(1, 1, 1, 1)).eval()
    one, opposite = network(to_inputs(pixelated, known))
    assert not torch.equal(one, pixelated[0] / 255) and (one - opposite.flip(1, 2)).abs().max() < 1e-5


def test_predictions_do_not_depend_on_the_batch():
    _, _, pixelated, known = cases(24, 5, smooth=True)
    network = loose_init(ResidualUNet(channels=(16, 32), blocks=(1, 1)))
    whole = network(to_inputs(pixelated, known))
    parts = torch.cat([network(to_inputs(pixelated[i : i + 5], known[i : i + 5])) for i in range(0, 24, 5)])
    assert (whole - parts).abs().max() < 1e-5


def test_window_is_as_large_as_its_rectangle_needs():
    network = ResidualUNet(channels=(8, 8, 16, 16), blocks=(1, 1, 1, 1))  # window sides are multiples of 8
    assert [network.window_side(extent) for extent in (4, 8, 9, 32)] == [24, 24, 32, 48]
    unknown = torch.zeros(3, 64, 64, dtype=torch.bool)
    for i, (start, extent) in enumerate(((20, 8), (0, 9), (61, 3))):
        unknown[i, :, start : start + extent] = True
    assert [t.tolist() for t in network._windows(unknown, 2)] == [[12, 0, 40], [24, 32, 24]]
    assert [t.tolist() for t in network._windows(unknown, 1)] == [[0] * 3, [64] * 3]
    network.narrowed = 4
    assert [t.tolist() for t in network._windows(unknown, 2)] == [[16, 0, 48], [16, 24, 16]]
    assert network.window_side(8) == 24  # by which images are grouped, whatever the progress
    network.narrowed = 100  # as far as there is a margin
    assert [t.tolist() for t in network._windows(unknown, 2)] == [[20, 0, 56], [8, 16, 8]]


def test_views_are_the_eight_symmetries_and_their_mean_keeps_block_means():
    _, _, pixelated, known = cases(20, 8, smooth=True)
    network = loose_init(ResidualUNet(channels=(16, 32), blocks=(1, 1))).eval()
    maps = torch.randn(2, 3, 24, 16)
    seen = []
    for symmetry in range(8):  # each is undone
        assert torch.equal(transform(lambda maps: seen.append(maps) or maps[:, :1], maps, symmetry), maps[:, :1])
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 8  # and no two are alike
    inputs = to_inputs(pixelated, known)
    grid = BlockGrid(pixelated, ~known, SIZES)
    one = network(inputs).detach()
    assert sorted(network.VIEWS) == list(range(8)) and network.VIEWS[0] == 0
    each = torch.stack([network(inputs, views=[symmetry]) for symmetry in range(8)]).detach()
    outputs = network(inputs, views=network.VIEWS).detach()
    assert torch.equal(each[0], one) and (outputs - each.mean(dim=0)).abs().max() < 0.01  # but for the clamping
    assert (outputs - one).abs().max() > 1e-3
    assert (grid.means(outputs) - grid.expected_means(inputs[:, :1])).abs().max() * 255 < 0.1


def test_unet_keeps_the_size_and_starts_at_zero():
    network = UNet(3, 2, (8, 16), (1, 1))
    maps = torch.randn(2, 3, 12, 20)
    assert network.multiple == 2 and torch.equal(network(maps), torch.zeros(2, 2, 12, 20))
    loose_init(network)
    assert network(maps).abs().min() > 0
    odd = maps[:, :, :11, :19]  # its last row and column go on beyond the edge
    padded = torch.nn.functional.pad(odd, (0, 1, 0, 1), "replicate")
    assert torch.allclose(network(odd), network(padded)[:, :, :11, :19], atol=1e-6)
    with pytest.raises(ValueError, match="for each of the 3 stages"):
        UNet(channels=(8, 8, 8), blocks=(1, 1))


def test_reference_networks():
    counts = {name: sum(p.numel() for p in network().parameters()) for name, network in NETWORKS.items()}
    assert counts["IdentityModel"] == 0
    assert counts["BasicCNN"] == (2 * 9 * 32 + 32) + 4 * (32 * 9 * 32 + 32) + (32 * 9 + 1)
    assert 2.40e6 < counts["DeePixV1"] < 2.42e6
    assert [block.conv1.kernel_size[0] for block in DeePixV1().blocks] == [3, 3, 3, 3, 3, 5]
    assert DeePixV1((4, 5, 5), (3, 7)).last[0].kernel_size == (7, 7)
    _, _, pixelated, known = cases(3, 6)
    for network in (BasicCNN(), DeePixV1((3, 4), (3, 3))):
        outputs = network(to_inputs(pixelated, known))
        assert outputs.shape == (3, 1, 64, 64) and torch.equal(outputs[known] * 255, pixelated[known].float())


def test_every_network_learns_its_training_batch():
    images, _, pixelated, known = cases(4, 7, smooth=True)
    truth = torch.from_numpy(images)[:, None].float() / 255
    for network in (
        BasicCNN(16, 2),
        DeePixV1((3, 4), (3, 3)),
        ResidualUNet((8, 16), (1, 1)),
        OddUNet((16, 32), (1, 1)),
    ):
        optimizer, losses = torch.optim.Adam(network.parameters(), 1e-2), []
        for _ in range(40):
            loss = training_loss("rmse", network(to_inputs(pixelated, known)), truth, known)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-8:]) / 8 < 0.9 * losses[0], type(network).__name__  # the rectangles differ
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
