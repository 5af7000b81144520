"""Photos of the user's: their names, and those of what becomes of them."""

import os

from depixelation.images.photo_files import result_bases


def test_photos_whose_names_differ_by_case_alone_have_results_of_different_names(tmp_path):
    for name in ("One.JPG", "one.png", "two.png"):
        (tmp_path / name).touch()
    files = [(str(tmp_path / name), name) for name in ("One.JPG", "one.png", "two.png")]
    assert result_bases(files, "out") == [os.path.join("out", name) for name in ("One_JPG", "one_png", "two")]
