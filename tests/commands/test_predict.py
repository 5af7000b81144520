"""--predict, beside what tests/test_main.py does with it."""

import numpy as np
import pytest
from conftest import draw_batch

from depixelation.commands.predict import write_submission
from utils import UserError


def test_predictions_of_other_images_are_not_written(tmp_path):
    pixelated, known, images = ([*part.numpy()] for part in draw_batch(3, (8, 20), (8, 20), (4, 8)))
    path = tmp_path / "a.bin"
    write_submission(images, pixelated, known, path)
    written = path.read_bytes()
    for wrong in (images[::-1], [image.astype(np.int64) for image in images]):
        with pytest.raises(UserError, match="the prediction for image 0 does not fit it"):
            write_submission(wrong, pixelated, known, path)
    assert path.read_bytes() == written
