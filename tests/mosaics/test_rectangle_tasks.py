"""The score, and predictions as they are submitted."""

import math

import pytest
import torch

from depixelation.engine.predictor import Predictor
from depixelation.engine.restoration import restore, rmse_per_image
from depixelation.mosaics.rectangle_tasks import training_loss


def test_score_worked_example():
    """Errors 3 and 4 on the unknown pixels of the first image, 6 on that of the second, large ones on known pixels."""
    images = torch.zeros(2, 1, 1, 3)
    predictions = torch.tensor([[3.0, 4, 99], [99, 6, 99]]).reshape(2, 1, 1, 3)
    known = torch.tensor([[False, False, True], [True, False, True]]).reshape(2, 1, 1, 3)
    per_image = rmse_per_image(predictions.double(), images.double(), known)
    assert per_image.dtype == torch.float64
    assert per_image.tolist() == pytest.approx([math.sqrt(12.5), 6])
    score = per_image.mean().item()
    over_all_unknown_pixels = math.sqrt((9 + 16 + 36) / 3)  # another number: the kind of RMSE matters
    assert score == pytest.approx(4.76777, abs=1e-5) and abs(score - over_all_unknown_pixels) > 0.2
    for kind, expected, of in (("rmse", score, 2), ("mse", 61 / 3, 3)):  # images, unknown pixels
        loss, count = training_loss(kind, predictions / 255, images, known)
        assert loss.item() == pytest.approx(expected, abs=1e-3) and float(count) == of


def test_loss_has_a_gradient_where_the_prediction_is_right():
    predictions = torch.zeros(1, 1, 2, 2, requires_grad=True)
    known_arrays = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    training_loss("rmse", predictions, torch.zeros(1, 1, 2, 2), known_arrays)[0].backward()
    assert predictions.grad.isfinite().all()


def test_restore_clamps_and_rounds():
    outputs = torch.tensor([-3.0, 0.6, 127.4, 127.6, 254.6, 300]).reshape(1, 1, 1, 6) / 255
    pixelated = torch.full((1, 1, 1, 6), 9, dtype=torch.uint8)
    unknown = torch.zeros(1, 1, 1, 6, dtype=torch.bool)
    predictor = Predictor(lambda inputs: outputs, torch.device("cpu"))
    predictions = restore(predictor, pixelated, unknown)
    assert predictions.flatten().tolist() == [0, 1, 127, 128, 255, 255]
    assert torch.equal(restore(predictor, pixelated, ~unknown), pixelated)


def test_score_agrees_with_an_independent_one_to_1e_9():
    """Plain loops in float64, as the challenge's server may do it, on random images and rectangles."""
    generator = torch.Generator().manual_seed(0)
    images, predictions = (
        torch.randint(0, 256, (200, 1, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(2)
    )
    known = torch.ones(200, 1, 64, 64, dtype=torch.bool)
    expected = []
    for i in range(200):
        x, y, width, height = torch.randint(4, 32, (4,), generator=generator).tolist()
        known[i, 0, y : y + height, x : x + width] = False
        pairs = zip(images[i][~known[i]].tolist(), predictions[i][~known[i]].tolist())
        squares = [(float(a) - float(b)) ** 2 for a, b in pairs]
        assert len(squares) == width * height
        expected.append(math.sqrt(math.fsum(squares) / len(squares)))
    score = rmse_per_image(predictions.double(), images.double(), known).mean().item()
    assert abs(score - math.fsum(expected) / 200) < 1e-9
