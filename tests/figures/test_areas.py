"""Areas drawn into photos."""

import numpy as np

from depixelation.figures.areas import RED, YELLOW, mark_areas, outline_areas
from depixelation.mosaics.area import Area


def test_true_areas_are_white_and_found_ones_black():
    photo = np.full((60, 80, 3), 90, dtype=np.uint8)
    truth, found = Area(5, 10, 20, 30, 4.0, 4.0), Area(50, 10, 20, 30, 4.0, 4.0)
    drawn = outline_areas(photo, [truth], [found])
    assert (drawn[10, 5:25] == 255).all() and (drawn[12, 52:68] == 0).all() and (photo == 90).all()


def test_edges_are_red_and_grids_yellow():
    photo = np.full((40, 40, 1), 90, dtype=np.uint8)
    drawn = mark_areas(photo, [Area(8, 4, 16, 24, 8.0, 6.0)])
    assert (drawn[4, 8:24] == RED).all() and (drawn[4:28, 23] == RED).all() and (drawn[:4] == 90).all()
    assert (drawn[10, 9:23] == YELLOW).all() and (drawn[5:27, 16] == YELLOW).all() and (drawn[12, 12] == 90).all()
