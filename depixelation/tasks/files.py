"""Files: restore pixelated areas of photos, as --depixelate finds them, in any kind of picture and file.

Unlike the challenge's images, these are photos of full size, with larger rectangles and blocks. After JPEG and scaling,
the blocks' values and their surroundings are known only roughly. A block's value may be its mean in sRGB, its mean in
linear light, or its middle pixel; the network must infer which.
"""

import os
from dataclasses import dataclass

from depixelation.figures.curves import column_panels
from depixelation.images.holdout import content_digest, held_out_digests, image_source, images_with_truth
from depixelation.mosaics.file_areas import FileAreas
from depixelation.mosaics.rectangle_tasks import RestorationConfig, RestorationTask
from utils import ROOT, inherited, key

GROUPS = {  # like depixelation's
    "block size": (0, ((4, 6), (7, 9), (10, 12), (13, 16)), "pixels, at the network's scale"),
    "rectangle": (1, ((16, 1024), (1025, 2304), (2305, 10000)), "area in pixels, at that scale"),
}


@dataclass(frozen=True)
class FilesConfig(RestorationConfig):
    """The keys of files."""

    task: str = inherited("task", "files")
    name: str = inherited("name", "restorer")
    network_options: dict = inherited("network_options", {"margin": 16, "consistent": False})
    batch_size: int = inherited("batch_size", 32)
    synthetic_images: int = inherited("synthetic_images", 2000)
    crops: int = key(16000, "training areas per epoch; the photos take turns", minimum=1, maximum=10**7)
    pictures: int = key(1000, "areas to measure on", minimum=4, maximum=10**5)


class Files(RestorationTask):
    """Like depixelation, but for areas in any file; models of both tasks can be compared on them."""

    Config = FilesConfig
    summary = "restore pixelated areas of photos of any kind, for --depixelate"
    also_loads = ("depixelation",)
    groups = GROUPS
    shipped = os.path.join(ROOT, "models", "files.pt")

    def prepare(self):
        config = self.config
        cache, train_indices, validation_indices = image_source(config, colour=True)
        self.held_out = held_out_digests(cache, train_indices, validation_indices)
        self.content = content_digest(cache)
        self.training_set = FileAreas(cache, train_indices, config.seed, config.crops, distinct=config.max_images)
        self.validation_set = FileAreas(cache, validation_indices, 0, config.pictures, training=False)

    def evaluation_set(self, models, options):
        cache, indices, source = images_with_truth(self.config, options, models, colour=True)
        count = self.config.pictures
        words = f"{count:,} areas of {source}; score: mean RMSE at the network's scale, in grey levels of 255"
        return FileAreas(cache, indices, 0, count, training=False), words

    def log_panels(self, rows):
        return column_panels(rows, (("train_loss", "training loss"), ("score", "score, grey levels of 255")))


TASK = Files
