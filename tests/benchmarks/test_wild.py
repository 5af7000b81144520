"""wild.py, on a few pictures."""

import os

import numpy as np
import pytest
import wild
from PIL import Image

from depixelation.tasks.finding import Finding


@pytest.mark.skipif(not os.path.exists(Finding.shipped), reason="needs the finder")
def test_wild_pictures(tmp_path):
    """The script's table, on drawn images: most areas are found, and what is restored is nearer to the truth."""
    rows = wild.main("synthetic", 4, str(tmp_path / "sheet.png"), str(tmp_path))
    assert Image.open(tmp_path / "sheet.png").size == (3 * 384, 3 * 384)
    areas, found, false = (sum(row[i] for row in rows) for i in (1, 2, 3))
    assert found >= 0.45 * areas and false <= 0.8 * len(rows)
    before, after = (np.nanmean([row[i] for row in rows]) for i in (5, 6))
    assert after < 0.95 * before
