"""The flow: what each of its steps keeps, where it ends, and what it starts from."""

import pytest
import torch
from conftest import draw_batch

from architectures import FlowUNet, OddUNet, without_means
from depixelation.block_grid import BlockGrid
from depixelation.engine.predictor import Predictor, RealismBlend
from depixelation.engine.restoration import to_inputs
from depixelation.tasks.flow import Flow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch():
    return draw_batch(12, (8, 30), (8, 30), (4, 9))


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
    in_bfloat16 = Predictor(lambda inputs: network.sample(inputs, restored), CPU, torch.bfloat16)(inputs)
    assert (grid.means(in_bfloat16) - grid.means(end)).abs().max() < 0.05 / 255 and not torch.equal(in_bfloat16, end)


@torch.inference_mode()
def test_the_flow_ends_where_its_velocity_points(batch, monkeypatch):
    """With the velocity that it learns, towards the truth, it ends there from any noise, in any number of steps."""
    pixelated, known, images = batch
    inputs, network, truth = to_inputs(pixelated, known), flow_network(), images / 255
    grid = BlockGrid(inputs[:, :1], ~known, network.sizes)
    restored = torch.where(known, truth, grid.means(truth))

    def forward(self, seen, views=(0,)):
        now, time = seen[:, 3:4], seen[:, 4:]
        return without_means(grid, truth - now) / (1 - time)

    monkeypatch.setattr(FlowUNet, "forward", forward)
    for steps in (1, 4):
        assert (network.sample(inputs, restored, seed=steps, steps=steps) - truth).abs().max() < 0.005


@torch.inference_mode()
def test_samples_differ_by_their_seed_alone(batch):
    pixelated, known, _ = batch
    inputs, network = to_inputs(pixelated, known), flow_network()
    blend = RealismBlend(Predictor(lambda inputs: inputs[:, :1], CPU), network.sample, 0.5, draws=True)
    first, second = (sample(inputs) for sample in blend.samples(2))
    assert torch.equal(first, blend.at(1.0, seed=0)(inputs)) and (first - second)[~known].abs().mean() > 1e-3
    alone = blend.at(1.0, seed=1)(inputs[3:4])
    assert (alone - second[3:4]).abs().max() < 1e-5
    assert torch.equal(blend.at(0)(inputs), inputs[:, :1])  # R = 0: the accurate one, to the bit
    assert torch.allclose(blend(inputs), (inputs[:, :1] + first) / 2, atol=1e-6)


def test_the_flow_starts_from_the_accurate_networks_weights():
    shape = {"channels": [16, 32], "blocks": [1, 1]}
    task = Flow(Flow.Config(network_options=shape))
    network = task.build_network("OddFlowUNet", shape)
    saved = {"weights": OddUNet(**shape).state_dict(), "config": {"network": "OddUNet"}}
    task.load_weights(network, saved, "accurate.pt")
    own = network.state_dict()
    same = [name for name in own if torch.equal(own[name], saved["weights"][name])]
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
    times = shares[0][1].flatten()
    assert len(times.unique()) == 12 and 0 <= times.min() < 0.5 < times.max() < 1
    assert shares[1][2] == shares[2][2]  # and the next is the same everywhere
