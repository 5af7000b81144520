"""Adversarial training: what the discriminator judges, and runs against it."""

import signal

import numpy as np
import pytest
import torch
from conftest import CPU, draw_batch, interrupt_at, load_weights, log, save_photo
from PIL import Image

import main as entry
from depixelation.engine import realism
from depixelation.engine.adversarial import Discriminator, crop, mean_inside
from depixelation.engine.learner import Learner
from depixelation.engine.processes import Processes
from depixelation.engine.restoration import to_inputs
from depixelation.tasks.depixelation import Depixelation


def test_the_discriminator_judges_inside_the_rectangle_alone():
    pixelated, known, images = draw_batch(12, (8, 30), (8, 30), (4, 9))
    restored, inside = (pixelated / 255).requires_grad_(), (~known).float()
    config = Depixelation.Config(adversarial=2.0)
    task, network = Depixelation(config), Discriminator(3).to(memory_format=torch.channels_last)
    task.discriminator = Learner(network, config, torch.float32, Processes())
    found = task.generator_loss(restored.sum() * 0, restored, images / 255, to_inputs(pixelated, known), inside)
    found["train_loss"].backward()
    reach = torch.nn.functional.max_pool2d(inside, 2 * 24 + 1, 1, 24)  # as far as convolutions look
    assert restored.grad[~known].abs().max() > 0 and restored.grad[reach == 0].abs().max() == 0
    assert all(parameter.grad is None for parameter in network.parameters())  # it learns nothing in that step
    told, count = task.discriminator_loss()
    assert count == 12 and 0 <= told["told_apart"] <= 1 and told["discriminator_loss"] > 0
    windows = crop(inside, restored.detach())
    assert windows[0].sum() == inside.sum() and max(windows[0].shape[2:]) <= 30 + 12 + 3
    assert torch.isclose((windows[0] * windows[1]).sum(), (inside * restored.detach()).sum())
    assert mean_inside(torch.where(known, 99.0, 2.0), inside) == 2


def test_adversarial_runs_resume_exactly_and_keep_the_last_weights(run, model, tmp_path, monkeypatch, capsys):
    more = ["--init", model, "--adversarial", "3", "--epochs", "2", "--name"]
    assert run(*more, "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run(*more, "parts") == 128 + signal.SIGINT
    assert entry.main(["--resume", "--name", "parts", "--output_dir", str(tmp_path)]) == 0
    states = [torch.load(tmp_path / "models" / f"{name}.last.pt", weights_only=True) for name in ("whole", "parts")]
    for part in ("network", "discriminator"):
        whole, parts = (state["parts"][part]["weights"] for state in states)
        assert whole.keys() == parts.keys() and all(map(torch.equal, whole.values(), parts.values()))
    rows = log(tmp_path, "whole")
    assert [{**row, "minutes": 0} for row in rows] == [{**row, "minutes": 0} for row in log(tmp_path, "parts")]
    assert {"own_loss", "adversarial_loss", "matching_loss", "discriminator_loss", "told_apart", "score"} <= rows[
        0
    ].keys()
    kept, average = load_weights(tmp_path / "models" / "whole.pt"), states[0]["parts"]["network"]["average"]
    assert all(torch.equal(kept[name], average[f"module.{name}"].half()) for name in kept)
    assert "discriminator right on" in capsys.readouterr().out


@pytest.mark.parametrize("share, said", [(0.99, "it wins"), (0.5, "tells nothing apart"), (0.8, "")])
def test_a_discriminator_that_wins_or_dies_is_noticed(share, said):
    line = Depixelation(Depixelation.Config(adversarial=1.0)).reference({"identity_score": 20, "told_apart": share})
    assert said in line if said else line.endswith(f"right on {share:.0%}")


def test_super_resolution_against_a_discriminator(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(realism, "STEPS", 5)
    options = ["--task", "super_resolution", "--network_options", '{"channels": 16, "blocks": 1}', *CPU]
    options += ["--synthetic_images", "24", "--batch_size", "8", "--crops", "16"]
    options += ["--crop_size", "32", "--epochs", "1", "--output_dir", str(tmp_path), "--cache_dir", str(tmp_path / "c")]
    assert entry.main([*options, "--name", "SR"]) == 0
    models = [str(tmp_path / "models" / f"{name}.pt") for name in ("SR", "real")]
    assert entry.main([*options, "--name", "real", "--init", models[0], "--adversarial", "0.1"]) == 0
    assert {"adversarial_loss", "discriminator_loss", "psnr_y"} <= log(tmp_path, "real")[0].keys()
    capsys.readouterr()
    assert entry.main([*options, "--evaluate", models[0], "--realism", "0.5", "--refiner", models[1]]) == 0
    output = capsys.readouterr().out
    assert "SR.pt, R = 0.5" in output and "classifier" in output
    save_photo(tmp_path / "a.png", 3, (40, 30))
    line = [*options, "--predict", str(tmp_path / "a.png"), "--model", models[0], "--refiner", models[1]]
    pictures = []
    for share in ("0", "0.5", "1"):
        assert entry.main([*line, "--realism", share]) == 0
        pictures.append(np.asarray(Image.open(tmp_path / "a_x2.png")).astype(int))
    assert np.abs(pictures[0] + pictures[2] - 2 * pictures[1]).max() <= 2


def test_a_steep_discriminator_is_punished_for_all_steps_between_two_penalties():
    """R1 of a slope of 3: half of its square, times the weight 0.001, for 16 steps at once."""

    def judge(maps):
        return 3 * maps[:, :1], []

    task, losses = Depixelation(Depixelation.Config(adversarial=1.0)), []
    task.pair = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16), torch.ones(2, 2, 16, 16), torch.ones(2, 1, 16, 16)
    task.discriminator = judge
    for judge.steps in (16, 17):
        losses.append(task.discriminator_loss()[0]["discriminator_loss"].item())
    assert losses[0] - losses[1] == pytest.approx(16 * 0.001 * 3**2 / 2, rel=1e-3)
