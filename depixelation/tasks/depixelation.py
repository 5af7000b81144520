"""Depixelation: the challenge of JKU Linz. One rectangle of a 64x64 grayscale photo was replaced by block means."""

import os

from depixelation.engine.leaderboard import LEADERBOARD_2023, place_in_2023, points
from depixelation.figures.curves import Panel
from depixelation.mosaics.rectangle_tasks import RestorationTask
from utils import ROOT


class Depixelation(RestorationTask):
    """Predict the original pixels of the rectangle. A batch: pixelated images, known arrays, images, (N, 1, 64, 64)."""

    summary = "restore the pixelated rectangle of 64x64 grayscale photos (the challenge)"
    narrowed = (0.3, 8), (0.7, 4)  # (progress, pixels): until then the margin is reduced by so much
    next_command = "--predict --test_set test_set.pkl"
    shipped = os.path.join(ROOT, "models", "photos.pt")

    def begin_step(self, network, progress):
        """Start with narrow windows: two to three times as many fit into the time, and most is learned in them.

        All sides shrink by the same multiple of 8, so a batch's windows stay equal. With --init they are full from the
        start: the model that the run starts from already knows them.
        """
        if hasattr(network, "narrowed") and not self.config.init:
            network.narrowed = next((pixels for end, pixels in self.narrowed if progress < end), 0)

    def columns(self, models, measured):
        scores = measured.figures["score"].mean(axis=1)
        pairs = list(zip(models, scores))
        identity = next(score for model, score in pairs if model.name == "IdentityModel")
        basic = (score for model, score in pairs if model.trained_with and model.trained_with.network == "BasicCNN")
        reference = next(basic, None)
        sound = reference and identity > reference  # false if all images are black, for example
        worth = [f"{points(score, identity, reference):.0f}" if sound else "-" for score in scores]
        return {"points": worth, "place in 2023": [place_in_2023(s, identity) if identity else "-" for s in scores]}

    def report(self, models, measured):
        print(
            "Points: 200 at BasicCNN's score on these images, 50 more below it (the course: 100 more, but below its "
            "AdvancedModel, whose score is not published). Places: scaled by IdentityModel's score, then and here."
        )
        return super().report(models, measured)

    def log_panels(self, rows):
        power = 0.5 if self.config.loss == "mse" else 1  # draw the root of a squared error
        samples = [row["samples"] for row in rows]
        curves = {
            "training loss": (samples, [row.get("own_loss", row["train_loss"]) ** power for row in rows]),
            "validation score": (samples, [row["score"] for row in rows]),
        }
        lines = {"IdentityModel, same images": rows[-1]["identity_score"]}
        if self.config.images != "synthetic":  # drawn images do not compare with the photos of 2023
            lines |= {f"{name}, 2023": LEADERBOARD_2023[name] for name in ("BasicCNN", "rank 1")}
        label = "RMSE on the unknown pixels, grey levels of 255"
        return [Panel(label, curves, {"yscale": "log"}, "training samples", lines)]


TASK = Depixelation
