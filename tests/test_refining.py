"""Realism: adversarial training, the flow, and what lies between accurate and real."""

import os
import signal

import numpy as np
import pytest
import torch
from conftest import save_photo
from PIL import Image
from test_main import TINY, interrupt_at, load_weights, log

import main as entry
from architectures import BlockGrid
from datasets import draw_rectangle, prepare_image
from submission_serialization import deserialize
from synthetic import synthetic_image
from tasks import flow, realism
from tasks.adversarial import Discriminator, crop, mean_inside
from tasks.depixelation import Depixelation
from tasks.flow import Flow, FlowUNet, without_means
from tasks.refining import Refined
from tasks.restoration import restore_float, to_inputs
from tasks.training import Part


@pytest.fixture(scope="module")
def batch():
    """(pixelated images, known arrays, images) of 12 drawn images."""
    rng, drawn = np.random.default_rng(0), [synthetic_image(5, i, 64)[None] for i in range(12)]
    ranges = (8, 30), (8, 30), (4, 9)
    pixelated, known, _ = zip(*(prepare_image(image, *draw_rectangle(rng, 64, 64, *ranges)) for image in drawn))
    return tuple(torch.from_numpy(np.stack(arrays)) for arrays in (pixelated, known, drawn))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with models, accurate, and adversarial and flow, which start from it; a function that calls main()."""
    folder = tmp_path_factory.mktemp("trained")
    outputs = ["--output_dir", str(folder), "--cache_dir", str(folder / "cache")]

    def run(*options):
        return entry.main([*map(str, options), *outputs, *TINY])

    accurate = folder / "models" / "accurate.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "STEPS", 3)
        patch.setattr(realism, "STEPS", 5)
        assert run("--name", "accurate", "--epochs", "2") == 0
        assert run("--name", "adversarial", "--epochs", "2", "--init", accurate, "--adversarial", "3") == 0
        assert run("--task", "flow", "--epochs", "1", "--init", accurate) == 0
        yield folder, run


def flow_network(seed=0):
    """One whose velocity is something: it starts at zero."""
    torch.manual_seed(seed)
    network = FlowUNet(channels=(8, 16), blocks=(1, 1)).eval()
    torch.nn.init.normal_(network.last.weight, std=0.1)
    return network


@torch.inference_mode()
def test_every_step_of_the_flow_keeps_what_is_known(batch):
    pixelated, known, images = batch
    inputs, network = to_inputs(pixelated, known), flow_network()
    grid = BlockGrid(inputs[:, :1], ~known, network.sizes)
    restored = torch.where(known, inputs[:, :1], grid.expected_means(inputs[:, :1]))
    start, deviation, _ = network.start(inputs, restored, torch.randn(images.shape))
    velocity = network(torch.cat([inputs, restored, start, torch.full_like(start, 0.5)], dim=1))
    for change in (start - restored, velocity):
        assert change[~known].abs().mean() > 1e-3 and change[known].abs().max() < 1e-6
        assert grid.means(change).abs().max() < 1e-6
    noise = (start - restored) / deviation
    assert 0.15 < noise[~known].std() < 0.25  # a quarter of the deviation, less what the blocks' means took
    end = network.sample(inputs, restored)
    assert (grid.means(end) - grid.means(restored)).abs().max() < 0.5 / 255 and torch.equal(end[known], restored[known])
    in_bfloat16 = restore_float(lambda x: network.sample(x, restored), pixelated, known, torch.bfloat16)
    assert (grid.means(in_bfloat16) - grid.means(end)).abs().max() < 0.05 / 255 and not torch.equal(in_bfloat16, end)


@torch.inference_mode()
def test_the_flow_ends_where_its_velocity_points(batch, monkeypatch):
    """With the velocity that it learns, towards the truth, it ends there from any noise, in any number of steps."""
    pixelated, known, images = batch
    inputs, network, truth = to_inputs(pixelated, known), flow_network(), images / 255
    grid = BlockGrid(inputs[:, :1], ~known, network.sizes)
    restored = torch.where(known, truth, grid.means(truth))

    def forward(self, seen):
        now, time = seen[:, 3:4], seen[:, 4:]
        return without_means(grid, truth - now) / (1 - time)

    monkeypatch.setattr(FlowUNet, "forward", forward)
    for steps in (1, 4):
        assert (network.sample(inputs, restored, seed=steps, steps=steps) - truth).abs().max() < 0.005


@torch.inference_mode()
def test_samples_differ_by_their_seed_alone(batch):
    pixelated, known, _ = batch
    inputs, network = to_inputs(pixelated, known), flow_network()
    predict = Refined(lambda inputs: inputs[:, :1], network.sample, 0.5, drawn=True)
    first, second = (sample(inputs) for sample in predict.samples(2))
    assert torch.equal(first, predict(inputs, seed=0, realism=1)) and (first - second)[~known].abs().mean() > 1e-3
    alone = predict(inputs[3:4], seed=1, realism=1)
    assert (alone - second[3:4]).abs().max() < 1e-5
    assert torch.equal(predict(inputs, realism=0), inputs[:, :1])  # R = 0: the accurate one, to the bit
    assert torch.allclose(predict(inputs), (inputs[:, :1] + first) / 2, atol=1e-6)


def test_the_flow_starts_from_the_accurate_networks_weights(trained):
    folder, run = trained
    config = Flow.Config(
        init=str(folder / "models" / "accurate.pt"), network_options={"channels": [16, 32], "blocks": [1, 1]}
    )
    task = Flow(config)
    network = task.build_parts()["network"]
    saved = torch.load(config.init, weights_only=True)
    task.load_weights(network, saved, config.init)
    own = network.state_dict()
    same = [name for name in own if torch.equal(own[name], saved["weights"][name].float())]
    assert len(same) >= len(own) - 3 and not own["last.weight"].any()


def test_processes_share_what_one_would_draw(batch, monkeypatch):
    task, shares = Flow(Flow.Config(batch_size=12)), []
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        for name, value in {"TORCHELASTIC_RUN_ID": "test", "RANK": rank, "WORLD_SIZE": count}.items():
            monkeypatch.setenv(name, str(value))
        torch.manual_seed(0)
        shares.append(task.draw(batch[2][rank::count]) + [torch.rand(1)])
    for whole, even, odd in zip(*shares):
        assert torch.equal(whole[::2], even) and (torch.equal(whole[1::2], odd) or len(whole) == 1)
    assert shares[1][2] == shares[2][2]  # and the next is the same everywhere


def test_the_discriminator_judges_inside_the_rectangle_alone(batch):
    pixelated, known, images = batch
    restored, inside = (pixelated / 255).requires_grad_(), (~known).float()
    config = Depixelation.Config(adversarial=2.0)
    task, network = Depixelation(config), Discriminator(3).to(memory_format=torch.channels_last)
    parts = {"discriminator": Part(network, config, torch.float32, network)}
    found = task.deceive(parts, restored.sum() * 0, restored, images / 255, to_inputs(pixelated, known), inside)
    found["train_loss"].backward()
    reach = torch.nn.functional.max_pool2d(inside, 2 * 24 + 1, 1, 24)  # as far as convolutions look
    assert restored.grad[~known].abs().max() > 0 and restored.grad[reach == 0].abs().max() == 0
    assert all(parameter.grad is None for parameter in network.parameters())  # it learns nothing in that step
    told, count = task.tell_apart(parts["discriminator"])
    assert count == 12 and 0 <= told["told_apart"] <= 1 and told["discriminator_loss"] > 0
    windows = crop(inside, restored.detach())
    assert windows[0].sum() == inside.sum() and max(windows[0].shape[2:]) <= 30 + 12 + 3
    assert torch.isclose((windows[0] * windows[1]).sum(), (inside * restored.detach()).sum())
    assert mean_inside(torch.where(known, 99.0, 2.0), inside) == 2


def test_adversarial_runs_resume_exactly_and_keep_the_last_weights(trained, monkeypatch, capsys):
    folder, run = trained
    more = ["--init", folder / "models" / "accurate.pt", "--adversarial", "3", "--name", "parts"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        assert run(*more, "--epochs", "2") == 128 + signal.SIGINT
    assert entry.main(["--resume", "--name", "parts", "--output_dir", str(folder)]) == 0
    states = [torch.load(folder / "models" / f"{name}.last.pt", weights_only=True) for name in ("adversarial", "parts")]
    for part in ("network", "discriminator"):
        whole, parts = (state["parts"][part]["weights"] for state in states)
        assert whole.keys() == parts.keys() and all(map(torch.equal, whole.values(), parts.values()))
    rows = log(folder, "adversarial")
    assert [{**row, "minutes": 0} for row in rows] == [{**row, "minutes": 0} for row in log(folder, "parts")]
    assert {"own_loss", "adversarial_loss", "matching_loss", "discriminator_loss", "told_apart", "score"} <= rows[
        0
    ].keys()
    kept, average = load_weights(folder / "models" / "adversarial.pt"), states[0]["parts"]["network"]["average"]
    assert all(torch.equal(kept[name], average[f"module.{name}"].half()) for name in kept)
    assert "discriminator right on" in capsys.readouterr().out


@pytest.mark.parametrize("share, said", [(0.99, "it wins"), (0.5, "tells nothing apart"), (0.8, "")])
def test_a_discriminator_that_wins_or_dies_is_noticed(share, said):
    line = Depixelation(Depixelation.Config(adversarial=1.0)).reference({"identity_score": 20, "told_apart": share})
    assert said in line if said else line.endswith(f"right on {share:.0%}")


def test_predictions_by_realism(trained, tmp_path, refused):
    folder, run = trained
    test_set, models = tmp_path / "r" / "test_set.pkl", folder / "models"
    assert run("--make_test_set", tmp_path / "r", "--synthetic_images", "60") == 0
    written = {}
    for name, more in {
        "plain": [],
        "zero": ["--realism", "0", "--samples", "2", "--refiner", models / "flow.pt"],
        "half": ["--realism", "0.5", "--refiner", models / "flow.pt"],
        "real": ["--realism", "--refiner", models / "flow.pt"],
        "adversarial": ["--realism", "1", "--refiner", models / "adversarial.pt"],
        "itself": ["--model", models / "adversarial.pt"],
    }.items():
        chosen = [] if name == "itself" else ["--model", models / "accurate.pt"]
        path = tmp_path / f"{name}.bin"
        assert run("--predict", "--test_set", test_set, "--submission", path, "--views", "1", *chosen, *more) == 0
        written[name] = np.concatenate(deserialize(path)).astype(int)
    assert np.array_equal(written["plain"], written["zero"]) and np.array_equal(
        written["adversarial"], written["itself"]
    )
    assert np.abs(2 * written["half"] - written["plain"] - written["real"]).max() <= 2
    assert np.abs(written["real"] - written["plain"]).mean() > 1
    assert Image.open(tmp_path / "zero_samples.png").size[0] > 1000 and not os.path.exists(
        tmp_path / "half_samples.png"
    )
    line = ["--predict", "--test_set", test_set, "--model", models / "accurate.pt", "--submission", tmp_path / "x.bin"]
    refused(run(*line, "--samples", "2", "--refiner", models / "adversarial.pt"), "samples", "adversarial.pt")
    refused(run(*line, "--realism", "1", "--refiner", tmp_path / "none.pt"), "none.pt", "--refiner FILE")
    flow = ("--task", "flow", "--network", "FlowUNet", "--init", models / "accurate.pt", "--name", "x")
    refused(run(*flow), "accurate.pt", "(of OddUNet) do not fit FlowUNet")
    refused(run(*line, "--realism", "1.5"), "realism", "at most 1")
    refused(run("--adversarial", "1", "--patience", "2", "--name", "x"), "patience", "last weights")
    assert not (tmp_path / "x.bin").exists()


def test_evaluation_measures_realism(trained, monkeypatch, capsys):
    monkeypatch.setattr(Depixelation, "refiner", "none.pt")
    folder, run = trained
    models = [folder / "models" / f"{name}.pt" for name in ("accurate", "adversarial")]
    refiner = ["--realism", "--refiner", folder / "models" / "flow.pt", "--views", "1"]
    assert run("--evaluate", *models, *refiner, "--synthetic_images", "64", "--name", "real") == 0
    output = capsys.readouterr().out
    assert "accurate.pt, R = 1" in output and "How real rectangles look" in output
    for name in ("tradeoff", "realism"):
        assert Image.open(folder / "losses" / f"real_evaluation_{name}.png").size[0] > 500
    assert run("--evaluate", models[0], "--realism", "--name", "none") == 0  # without a refiner, of the model itself
    assert "classifier" in capsys.readouterr().out and not (folder / "losses" / "none_evaluation_realism.png").exists()
    assert run("--task", "flow", "--evaluate", folder / "models" / "flow.pt", "--init", models[0]) == 0
    assert "flow.pt" in capsys.readouterr().out


def test_possible_originals_of_a_photo(trained, tmp_path):
    folder, run = trained
    save_photo(tmp_path / "a.png", 3, (90, 70))
    options = [
        "--model",
        folder / "models" / "accurate.pt",
        "--refiner",
        folder / "models" / "flow.pt",
        "--samples",
        "2",
    ]
    assert run("--depixelate", tmp_path / "a.png", "--area", "20", "20", "24", "24", *options) == 0
    names = ["a.png", "a_before_after.png", "a_depixelated.png", "a_sample_1.png", "a_sample_2.png", "a_spread.png"]
    assert sorted(os.listdir(tmp_path)) == names
    first, second, spread = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in names[3:])
    inside = np.zeros(spread.shape, dtype=bool)
    inside[20:44, 20:44] = True
    assert (first == second)[~inside].all() and not spread[~inside].any()
    assert spread[inside].mean() == pytest.approx(4 * np.abs(first - second)[inside].mean() / 2, abs=1.5)


def test_super_resolution_against_a_discriminator(trained, tmp_path, capsys):
    options = ["--task", "super_resolution", "--network_options", '{"channels": 8, "blocks": 1}', "--device", "cpu"]
    options += ["--synthetic_images", "24", "--precision", "float32", "--batch_size", "8", "--crops", "16"]
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
