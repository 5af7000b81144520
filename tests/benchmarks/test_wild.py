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


@pytest.mark.skipif(not os.path.exists(Finding.shipped), reason="needs the finder")
def test_kinds_of_mosaics(tmp_path, monkeypatch):
    """Two kinds and two that only look like one, of drawn images: a PNG and a JPEG each."""
    monkeypatch.setattr(wild, "KINDS", {name: wild.KINDS[name] for name in ("ellipse", "fractional blocks")})
    monkeypatch.setattr(wild, "MIMICS", {name: wild.MIMICS[name] for name in ("pixel art", "JPEG quality 8 to 18")})
    monkeypatch.setattr(wild, "ODD", {})
    rows = wild.measure_kinds("synthetic", 2, str(tmp_path))
    assert min(rows[name][0] for name in wild.KINDS) > 0.6 and max(rows[name][1] for name in wild.KINDS) < 0.03
    assert max(rows[name][2] for name in wild.KINDS) < 1 and len(rows) == 4
