"""Precision auto, and models that are none."""

import pytest
import torch

from depixelation.engine import processes


def with_ratio(ratio, monkeypatch):
    """A CPU on which a convolution takes this many times as long in bfloat16."""
    seconds = {torch.float32: 1.0, torch.bfloat16: ratio}
    monkeypatch.setattr(processes, "convolution_seconds", lambda: seconds)


def test_precision_is_kept_with_the_model(run, model, predict, capsys, monkeypatch):
    """Auto would measure at each start, and could decide otherwise. A much slower one is not kept."""
    state = torch.load(model, weights_only=True)
    assert (state["precision"], state["device"]) == ("float32", "cpu")
    for kept, ratio, chosen in (
        ("float32", 0.7, "float32"),
        ("float32", 0.3, "bfloat16"),
        ("bfloat16", 1.5, "bfloat16"),
        ("bfloat16", 10, "float32"),
    ):
        torch.save({**state, "precision": kept}, model)
        for precision, expected in (("auto", chosen), ("float32", "float32")):
            with_ratio(ratio, monkeypatch)
            capsys.readouterr()
            assert predict("--submission", "a.bin", "--precision", precision) == 0
            assert f"cpu, {expected}" in capsys.readouterr().out


@pytest.mark.parametrize("ratio, warned", [(10, True), (1.5, False)])
def test_a_slow_precision_is_warned_of(run, capsys, monkeypatch, ratio, warned):
    with_ratio(ratio, monkeypatch)
    assert run("--epochs", "1", "--precision", "bfloat16") == 0
    assert ("warning: bfloat16 is far slower" in capsys.readouterr().err) == warned


def test_states_of_runs_are_no_models(predict, run, refused, shared):
    state = shared / "models" / "default.last.pt"
    refused(predict("--model", state), "is the state of a run")
    refused(run("--epochs", "1", "--init", state), "is the state of a run")
    refused(run("--evaluate", "model.pt", "--model", "other.pt"), "other.pt", "beside model.pt", "--model")
