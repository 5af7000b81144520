"""Which images are held out."""

import numpy as np
import pytest

from depixelation.images.holdout import split_by_folder


@pytest.mark.parametrize(
    "names",
    [
        [f"training/{i // 100:03}/{i:07}.jpg" for i in range(3000)],
        [f"{i // 7}/{i}.jpg" for i in range(100)],
        [f"{'abc'[i % 3]}/{i // 3:03}.jpg" for i in range(90)],
        [f"{i:03}.jpg" for i in range(200)],
        ["a.jpg", "b.jpg"],
    ],
)
def test_split_is_complete_and_does_not_leak(names):
    names = sorted(names)
    train, validation = split_by_folder(names, 0.1)
    assert sorted([*train, *validation]) == list(range(len(names))) and len(train) and len(validation)
    folders = {name.rpartition("/")[0] for name in names}
    if len(folders) > 3:
        assert not {names[i].rpartition("/")[0] for i in train} & {names[i].rpartition("/")[0] for i in validation}
    elif len(names) > 2:  # in runs: few training photos have a neighbour that is held out
        assert np.count_nonzero(np.diff(np.isin(np.arange(len(names)), validation))) <= 2 * 12
    assert len(validation) <= 0.2 * len(names) + 1


def test_each_17th_folder_of_the_course_is_held_out():
    """What all published scores are measured on."""
    names = [f"training/{i // 100:03}/{i:07}.jpg" for i in range(28000)]
    held_out = {int(names[i].split("/")[1]) for i in split_by_folder(names, 0.06)[1]}
    assert held_out == set(range(0, 280, 17))
