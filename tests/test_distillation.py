"""Distillation: a network learns from another one's predictions, --teacher."""

import signal

import pytest
import torch
from test_main import TINY, interrupt_at, load_weights, log  # noqa: F401  TINY: for the fixture `run`

import main as entry
from tasks.depixelation import Depixelation, distillation_loss, training_loss
from tasks.training import Part

SMALLER = ["--network_options", '{"channels": [16, 16], "blocks": [1, 1]}']


def test_the_loss_is_what_the_difference_from_the_posterior_mean_adds_to_the_score():
    """Truths scatter about what is taught; predictions are off by little: the score rises by the loss."""
    torch.manual_seed(0)
    taught = torch.rand(4000, 1, 8, 8, dtype=torch.float64)
    images = taught + 0.05 * torch.randn_like(taught)
    known = torch.zeros(taught.shape, dtype=torch.bool)
    known[:, :, :, 0] = True
    predictions = (taught + 0.01 * torch.randn_like(taught)).requires_grad_()
    loss = distillation_loss(predictions, taught, images, known)
    scores = [training_loss("rmse", values, images, known)[0] for values in (predictions, taught)]
    assert loss.item() == pytest.approx((scores[0] - scores[1]).item(), rel=0.05)
    loss.backward()
    towards = predictions.grad * (predictions - taught)
    assert (towards[~known] >= 0).all() and not predictions.grad[known].any()


def test_a_batch_is_taught_in_another_symmetry_without_changing_the_teacher(run, tmp_path):
    assert run("--name", "teacher", "--epochs", "1") == 0
    path = tmp_path / "models" / "teacher.pt"
    task = Depixelation(Depixelation.Config(teacher=str(path), network_options={"channels": [16], "blocks": [1]}))
    network = task.build_parts()["network"].to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    known = torch.ones(images.shape, dtype=torch.bool)
    known[:, :, 10:20, 30:50] = False
    losses, count = task.loss(
        "network", {"network": Part(network, task.config, torch.float32, network)}, [images, known, images]
    )
    losses["train_loss"].backward()
    assert (
        count == 4 and set(losses) == {"train_loss", "own_loss", "distillation_loss"} and network.last.weight.grad.any()
    )
    for share, parts in ((0.75, (0.5, 1.5)), (1, (0, 2))):
        task.config.teacher_share = share
        losses, _ = task.loss(
            "network", {"network": Part(network, task.config, torch.float32, network)}, [images, known, images]
        )
        expected = parts[0] * losses["own_loss"] + parts[1] * losses["distillation_loss"]
        assert torch.isclose(losses["train_loss"], expected)
    assert not any(p.requires_grad or p.grad is not None for p in task.teacher.parameters())
    saved = torch.load(path, weights_only=True)
    assert all(
        torch.equal(tensor, saved["weights"][name].float()) for name, tensor in task.teacher.state_dict().items()
    )
    assert [part["images"] for part in task.inherited] == ["synthetic"]


def test_runs_with_a_teacher_resume_exactly(run, tmp_path, monkeypatch, refused):
    assert run("--name", "teacher", "--epochs", "2", "--learning_rate", "5e-3") == 0
    teacher = ["--teacher", tmp_path / "models" / "teacher.pt", *SMALLER, "--epochs", "2"]
    assert run(*teacher, "--name", "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run(*teacher, "--name", "parts") == 128 + signal.SIGINT
    assert entry.main(["--resume", "--name", "parts", "--output_dir", str(tmp_path)]) == 0
    whole, parts = (load_weights(tmp_path / "models" / f"{name}.pt") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(map(torch.equal, whole.values(), parts.values()))
    rows = log(tmp_path, "whole")
    assert [{**row, "minutes": 0} for row in rows] == [{**row, "minutes": 0} for row in log(tmp_path, "parts")]
    assert rows[-1]["distillation_loss"] < rows[0]["distillation_loss"] < rows[0]["own_loss"] < rows[0]["train_loss"]
    saved = torch.load(tmp_path / "models" / "whole.pt", weights_only=True)
    assert len(saved["record"]) == 2 and "teacher" not in saved["config"]  # what the teacher was trained on is known
    refused(run(*teacher, "--name", "x", "--loss", "mse"), "teacher", "--loss rmse")
    refused(run(*teacher, "--name", "x", "--adversarial", "1"), "teacher", "--adversarial")
    refused(run("--name", "x", "--teacher", tmp_path / "none.pt"), "none.pt", "--teacher FILE")
    refused(run("--name", "x", "--teacher", tmp_path / "models" / "x.pt"), "x.pt")
    again = ["--resume", "--epochs", "3", "--output_dir", str(tmp_path)]
    for name, other in (
        ("whole", "none"),
        ("whole", str(tmp_path / "models" / "parts.pt")),
        ("teacher", tmp_path / "models" / "whole.pt"),
    ):
        refused(entry.main([*again, "--name", name, "--teacher", str(other)]), "teacher: ", "the run began with")
