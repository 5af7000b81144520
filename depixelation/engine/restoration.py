"""Restored images of the challenge: from a network's output to uint8 predictions, and their errors."""

import torch

BATCH = 256  # images restored at once; more fill the groups of equal windows better, but take more memory


def to_inputs(pixelated_images, known_arrays):
    """uint8 and bool, (N, 1, H, W) -> inputs of networks, (N, 2, H, W) float32: grey values and mask in [0, 1]."""
    return torch.cat([pixelated_images.float() / 255, known_arrays.float()], dim=1)


def mse_per_image(predictions, images, known_arrays):
    """The mean squared error over each image's unknown pixels, (N,); the arguments are those of rmse_per_image."""
    unknown = ~known_arrays  # known True: given; False: to be predicted
    return ((predictions - images) ** 2 * unknown).flatten(1).sum(1) / unknown.flatten(1).sum(1)


def rmse_per_image(predictions, images, known_arrays):
    """The root mean squared error over each image's unknown pixels (known False), (N,), in the units of the images.

    All (N, 1, H, W). The challenge's score is its mean over the images, on uint8 values: give float64 for that.
    """
    return mse_per_image(predictions, images, known_arrays).sqrt()


def restore(predictor, pixelated_images, known_arrays):
    """Predictions as they are submitted: clamped and rounded, known pixels unchanged.

    predictor: a Predictor. All (N, 1, H, W) on the CPU: uint8, bool, and uint8 again.
    """
    outputs = predictor(to_inputs(pixelated_images, known_arrays)).cpu()
    return torch.where(known_arrays, pixelated_images, (outputs * 255).clamp(0, 255).round().to(torch.uint8))
