"""Points, places and confidence intervals of scores."""

import numpy as np
import pytest

from depixelation.engine.leaderboard import place_in_2023, points
from depixelation.engine.measuring import confidence_interval


def test_points_and_places_of_the_course():
    scores = (24, 23, 20, 17, 16.9, 12)
    assert [points(score, identity=23, reference=17) for score in scores] == [0, 0, 100, 200, 250, 250]
    scores = (12, 12.649, 13, 13.65, 13.9, 14, 14.4, 17)
    expected = ["1", "1", "2", "3", "4 to 5", "6 to 7", "8 to 10", "below 10"]
    assert [place_in_2023(score, 23.163) for score in scores] == expected
    assert place_in_2023(2 * 13.9, 2 * 23.163) == "4 to 5"  # images that are harder for all


def test_confidence_interval_is_that_of_the_mean():
    errors = np.random.default_rng(1).normal(13, 8, 2000)
    low, high = confidence_interval(errors)
    half = 1.96 * errors.std() / 2000**0.5
    assert low == pytest.approx(errors.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(errors.mean() + half, abs=0.1 * half)
    assert np.allclose(confidence_interval(errors.repeat(9), np.arange(2000).repeat(9)), (low, high))  # as few photos


def test_a_large_folder_counts_as_many_images_as_it_has():
    sizes = [9, 1] * 50
    low, high = confidence_interval(np.repeat([0.0, 1.0] * 50, sizes), np.repeat(np.arange(100), sizes))
    assert low < 0.1 < high < 0.2
