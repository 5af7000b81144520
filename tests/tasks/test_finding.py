"""The task that trains the finder."""

import itertools
import signal

import pytest
import torch
from conftest import log

import main as entry
from depixelation.engine.predictor import Predictor
from depixelation.images.synthetic import synthetic_colour_image
from depixelation.mosaics import finder as finding_areas
from depixelation.mosaics.area import Area
from depixelation.mosaics.finder import MosaicNet, predict_cells
from depixelation.tasks.finding import Finding, compare_areas, losses_of


def test_network_and_loss():
    network = MosaicNet().eval()
    assert sum(p.numel() for p in network.parameters()) < 500_000
    luma = synthetic_colour_image(1, 1, 130)[:, :, 0]
    torch.nn.init.normal_(network.unet.last.weight, std=0.1)
    cells = predict_cells(Predictor(network, torch.device("cpu")), luma)
    assert cells.shape == (10, 33, 33) and 0 <= cells[0].min() <= cells[0].max() <= 1
    none = torch.zeros(1, 1, 2, 2), torch.zeros(1, 6, 2, 2), torch.full((1, 2, 2), -1), torch.ones(1, 1, 2, 2)
    seen = torch.full((1, 10, 2, 2), -20.0)
    assert losses_of(seen, *none)[0] < 1e-6 and losses_of(seen, *none)[1] == 0 and losses_of(-seen, *none)[0] > 9
    some = torch.ones(1, 1, 2, 2), torch.full((1, 6, 2, 2), 5.0), torch.zeros(1, 2, 2).long(), torch.ones(1, 1, 2, 2)
    right = torch.tensor([20.0, *[5.0] * 6, 20, -20, -20])[None, :, None, None].expand(1, 10, 2, 2)
    assert all(part < 1e-6 for part in losses_of(right, *some)) and losses_of(-right, *some)[1] > 5
    found, grids = losses_of(-right, *some)
    losses, _ = Finding(Finding.Config()).loss(lambda luma: -right, (torch.zeros(1, 1, 8, 8), *some))
    assert losses["train_loss"] == found + 0.5 * grids


def test_figures():
    truth = [Area(0, 0, 20, 20, 4.0, 4.0), Area(50, 50, 20, 20, 4.0, 4.0)]
    figures, hits = compare_areas([Area(1, 0, 20, 20, 5.0, 4.0), Area(80, 80, 9, 9, 3.0, 3.0)], truth)
    assert hits == [1, 0] and figures == (0.5, 0.5, 1.0, pytest.approx(0.125))
    assert compare_areas([], [])[0] == (1.0, 1.0, 0.0, 0.0)


def test_train_interrupt_resume_evaluate(tmp_path, monkeypatch, capsys):
    all_regions = finding_areas.regions_of  # of an untrained network hundreds of areas, which take long to be fitted
    monkeypatch.setattr(finding_areas, "regions_of", lambda *arguments: itertools.islice(all_regions(*arguments), 4))
    monkeypatch.setattr(finding_areas, "cut", lambda region: [region])
    options = ["--task", "finding", "--synthetic_images", "24", "--crops", "16", "--batch_size", "4", "--pictures", "4"]
    options += ["--network_options", '{"channels": [8, 8], "blocks": [1, 1]}', "--device", "cpu"]
    options += ["--precision", "float32", "--epochs", "2", "--validate_every", "2"]
    options += ["--output_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache")]
    assert entry.main([*options, "--name", "whole"]) == 0
    original, calls = Finding.loss, []

    def loss(*arguments):
        calls.append(None)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Finding, "loss", loss)
        assert entry.main([*options, "--name", "parts"]) == 130
    assert entry.main(["--task", "finding", "--resume", "--name", "parts", *options[-6:]]) == 0
    logs = [[{**row, "minutes": 0} for row in log(tmp_path, name)] for name in ("whole", "parts")]
    assert logs[0] == logs[1] and {"f1", "found", "false", "size_error", "mask_loss"} <= logs[0][0].keys()
    model = str(tmp_path / "models" / "whole.pt")
    assert entry.main([*options, "--evaluate", model, "--name", "it"]) == 0
    output = capsys.readouterr().out
    assert "no network" in output and "no fit" in output and "scaled JPEG 80" in output
    assert (tmp_path / "losses" / "it_evaluation_samples.png").exists()
