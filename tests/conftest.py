import os
import sys

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks are tiny here; before PyTorch is imported, for processes too
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from synthetic import synthetic_image  # noqa: E402


def save_photo(path, index, size=(150, 130), **options):
    """A colour photo of width x height, drawn by the program."""
    channels = [synthetic_image(7, 3 * index + i, 160)[: size[1], : size[0]] for i in range(3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack(channels, axis=2)).save(path, **options)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 12 folders of 5 JPEGs."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(60):
        save_photo(folder / f"{i // 5:03}" / f"{i:07}.jpg", i)
    return folder
