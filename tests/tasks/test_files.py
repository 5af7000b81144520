"""The task that trains what restores areas of files."""

import signal

import numpy as np
import torch
from conftest import TINY_UNET as TINY  # noqa: F401  for the fixture `run`
from conftest import Photos, interrupt_at, load_weights, log

import main as entry
from datasets import SIZE_RANGE, collate
from depixelation.block_grid import find_block_sizes
from depixelation.mosaics.area import Area
from depixelation.mosaics.file_areas import CANVAS, FileAreas

SMALL = ["--task", "files", "--crops", "16", "--batch_size", "8", "--pictures", "4"]


def test_samples_are_areas_in_the_form_of_the_challenge():
    areas = FileAreas(Photos(), range(3), 0, 40)
    samples = [areas[0, i] for i in range(40)]
    pixelated_images, known_arrays, images = collate(samples)
    assert pixelated_images.shape == images.shape == (40, 1, CANVAS, CANVAS)
    unknown = ~known_arrays[:, 0]
    rows, columns = unknown.any(dim=2).sum(dim=1), unknown.any(dim=1).sum(dim=1)
    assert torch.equal(unknown.sum(dim=(1, 2)), rows * columns)  # rectangles
    assert rows.min() >= 16 and max(rows.max(), columns.max()) <= 80
    sizes = find_block_sizes(pixelated_images[:, 0], unknown, range(SIZE_RANGE[0], SIZE_RANGE[1] + 1))
    assert sizes.min() >= 4 and len(sizes.unique()) > 5 and (sizes <= SIZE_RANGE[1]).float().mean() > 0.9
    inside = ((pixelated_images.double() - images) * ~known_arrays)[:, 0]
    errors = (inside.square().sum((1, 2)) / unknown.sum((1, 2))).sqrt()
    biases = inside.sum((1, 2)) / unknown.sum((1, 2))
    assert errors.min() > 1 and biases.abs().median() < 2  # details are lost, brightness hardly
    drawn = [areas.draw(np.random.default_rng(i), Photos()[0]) for i in range(40)]
    losses = [np.abs(pixels[-4:, -4:].astype(float) - source[-4:, -4:]).mean() for pixels, source, *_ in drawn]
    assert 0 < np.median(losses) < 8 and min(losses) == 0  # stored with losses, or without
    spaces = [(a.x, p.shape[1] - a.x - a.width, a.y, p.shape[0] - a.y - a.height) for p, _, a, *_ in drawn]
    left, right, upper, lower = np.sum(spaces, axis=0)
    assert 0.7 < left / right < 1.4 and 0.7 < upper / lower < 1.4  # as much context on either side
    again, later = areas[0, 5], areas[1, 5]
    assert all(np.array_equal(a, b) for a, b in zip(again, samples[5]))
    assert not np.array_equal(later[0], again[0])
    few = FileAreas(Photos(), range(3), 0, 40, distinct=2)
    assert np.array_equal(few[0, 1][0], few[4, 7][0]) and np.array_equal(few[0, 1][0], areas[0, 1][0])
    fixed = FileAreas(Photos(), range(3), 0, 4, training=False)
    assert np.array_equal(fixed[2][0], fixed[2][0]) and not np.array_equal(fixed[2][0], areas[0, 2][0])


def test_an_area_at_an_edge_is_at_one_on_the_canvas_too(monkeypatch):
    """What fills the canvas is no copy of hidden blocks: those would count as known."""
    picture = np.random.default_rng(0).integers(0, 256, (70, 60, 3), dtype=np.uint8)
    areas = FileAreas(Photos(), range(3), 0, 40)
    for x, y in ((0, 0), (28, 38), (10, 38)):
        area = Area(x, y, 32, 32, 8.0, 8.0)
        monkeypatch.setattr(areas, "draw", lambda *_: (picture, picture, area, True, True))
        hidden = ~areas[0, 0][1][0]
        rows, columns = hidden.any(axis=1), hidden.any(axis=0)
        assert (rows[0], rows[-1], columns[0], columns[-1]) == (y == 0, y == 38, x == 0, x == 28)
    picture[:] = 50, 100, 150
    assert {int(areas[0, i][0].max()) for i in range(20)} == {50, 100, 150}  # each colour in its turn


def test_runs_resume_exactly_and_compare_with_models_of_the_challenge(run, tmp_path, monkeypatch, capsys, refused):
    assert run(*SMALL, "--name", "whole", "--epochs", "2") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert run(*SMALL, "--name", "parts", "--epochs", "2") == 128 + signal.SIGINT
    assert entry.main(["--resume", "--task", "files", "--name", "parts", "--output_dir", str(tmp_path)]) == 0
    whole, parts = (load_weights(tmp_path / "models" / f"{name}.pt") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(map(torch.equal, whole.values(), parts.values()))
    assert [{**row, "minutes": 0} for row in log(tmp_path, "whole")] == [
        {**row, "minutes": 0} for row in log(tmp_path, "parts")
    ]
    assert run("--name", "photos", "--epochs", "1") == 0
    capsys.readouterr()
    models = [tmp_path / "models" / f"{name}.pt" for name in ("whole", "photos")]
    assert run(*SMALL, "--evaluate", *models) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("4 areas", "drawn images", "paired by sample", "photos.pt", "1025-2304"))
    assert "points" not in printed
    refused(run("--evaluate", models[0]), "whole.pt", "--task files")
