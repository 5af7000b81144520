"""What the data pipeline and the networks cost on this machine, as one table:
python tests/benchmarks/benchmark.py [--images X]

With --scaling MINUTES ... it trains networks of three sizes for so long each instead, and draws score against compute.
Not a test (pytest does not collect it): nothing is asserted, and it wants the machine for itself for some minutes.
Memory is the sum over all processes of their share of it (PSS), so pages that workers share count once.
"""

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from architectures import ResidualUNet  # noqa: E402
from datasets import CachedPixelationDataset, collate  # noqa: E402
from depixelation.engine.learner import Learner  # noqa: E402
from depixelation.engine.predictor import Predictor  # noqa: E402
from depixelation.engine.processes import Processes, choose_precision, keep_freed_memory  # noqa: E402
from depixelation.engine.restoration import restore  # noqa: E402
from depixelation.figures.sheets import save_figure  # noqa: E402
from depixelation.images.cache import open_cache  # noqa: E402
from depixelation.images.holdout import split_by_folder  # noqa: E402
from depixelation.tasks.depixelation import Depixelation  # noqa: E402
from utils import ROOT  # noqa: E402

CPU = torch.device("cpu")
MEASURED = ("OddUNet", "BasicCNN", "DeePixV1")  # networks of the table


def row(what, value, unit):
    print(f"{what:<58} {value:>10,.3g} {unit}" if value < 100 else f"{what:<58} {value:>10,.0f} {unit}", flush=True)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rate(function, items, limit=5.0):
    """Items a second over at least `limit` seconds of calls, after one that does not count."""
    function()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() < start + limit:
        function()
        calls += 1
    return calls * items / (time.perf_counter() - start)


def training_step(network, dtype):
    """A function that trains the network for a step on (pixelated images, known arrays, images), as main.py does."""
    task = Depixelation(Depixelation.Config())
    learner = Learner(network.train(), task.config, dtype, Processes())
    return lambda *batch: task.train_step(learner, batch, task.config.learning_rate)


def time_shares(step, batches):
    """{what: share of the time of training} by PyTorch's profiler."""
    kinds = {
        "mkldnn_convolution": "convolutions, forward",
        "convolution_backward": "convolutions, backward",
        "_fused_adamw_": "optimizer and gradient norm",
        "mm": "optimizer and gradient norm",  # Muon's matrix products; the few others are small
        "addmm": "optimizer and gradient norm",
        "linalg_vector_norm": "optimizer and gradient norm",
        "_foreach": "optimizer and gradient norm",
        "bmm": "block means and interpolation",
        "add": "additions",
        "clamp_min": "ReLU",
        "threshold_backward": "ReLU",
        "copy_": "copies and casts",
        "pixel_": "pixel (un)shuffle",
    }
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for batch in batches:
            step(*batch)
    times = {}
    for event in profile.key_averages():
        kind = next((kind for key, kind in kinds.items() if event.key.startswith(f"aten::{key}")), "all else")
        times[kind] = times.get(kind, 0) + event.self_cpu_time_total
    return {kind: time / sum(times.values()) for kind, time in sorted(times.items(), key=lambda item: -item[1])}


def train(images, minutes, cache_dir, output_dir, *options):
    """The log's last line, as a dict of text, of a training of so many minutes in a process of its own."""
    command = [sys.executable, os.path.join(ROOT, "main.py"), "--images", images, "--max_minutes", str(minutes)]
    command += ["--cache_dir", cache_dir, "--output_dir", output_dir, "--name", "benchmark", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(os.path.join(output_dir, "losses", "benchmark.csv"), encoding="utf-8") as file:
        return list(csv.DictReader(file))[-1]


SIZES = {  # network options of ResidualUNet
    "tiny": {"channels": [32, 32, 32], "blocks": [1, 1, 1]},
    "small": {"channels": [32, 48, 64], "blocks": [3, 2, 2]},
    "default": {},
}


CHAINS = (  # logs of shipped runs; a later one goes on from the model before it
    ("OddUNet, wide, on a GPU", ["photos"]),
    ("OddUNet, default", ["photos_cpu"]),
    ("OddUNet, default, 8 minutes", ["speed"]),
    ("EquivariantUNet, default", ["photos_equivariant"]),
    ("DeePixV1", ["DeePixV1"]),
    ("BasicCNN", ["BasicCNN"]),
    ("ResidualUNet, small", ["small_start", "small_20", "small"]),
    ("ResidualUNet, default", ["photos_start", "photos_margin8", "photos_long"]),
    ("ResidualUNet, margin 16, then wider", ["photos_start", "photos_margin8", "photos_margin16", "photos_wide"]),
)
# Its authors' samples; its score on the leaderboard, and IdentityModel's on the photos of the leaderboard.
RANK_1 = {"network": "DeePixV1", "samples": 5.4e6, "score": 12.649, "identity_score": 23.163}
TABLE = os.path.join(ROOT, "losses", "scaling.csv")


def train_sizes(images, minutes):
    """Train each size from nothing for each number of minutes; write their results to losses/scaling.csv."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in SIZES.items():
            for m in minutes:
                shape = "--network", "ResidualUNet", "--network_options", json.dumps(options)
                last = train(images, m, folder, folder, *shape)
                rows.append({"size": name, "minutes": m, "samples": last["samples"], "score": last["score"]})
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    with open(TABLE, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def training_flops(network, dataset):
    """FLOPs of training on one image: three times those of the forward pass, a mean over an epoch's windows.

    In bfloat16, as all runs of the figure: in float32 odd networks take half (`depixelation.symmetry.by_parity`).
    """
    size, predictor = Depixelation.Config().batch_size, Predictor(network.eval(), CPU, torch.bfloat16)
    batches = itertools.islice(dataset.batches(size, 0, getattr(network, "window_side", None)), len(dataset) // size)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        batches = [collate([dataset[key] for key in batch[:4]]) for batch in batches]
        count = sum(len(restore(predictor, *batch[:2])) for batch in batches)
    return 3 * counter.get_total_flops() / count


def kept_file(folder, name):
    """The path of a shipped run's file, or of one of an experiment whose model is not shipped."""
    path = os.path.join(ROOT, folder, name)
    return path if os.path.exists(path) else os.path.join(ROOT, "losses", "experiments", name)


def read_log(name):
    """(samples, scores, IdentityModel's score) of a log, two arrays of an entry a validation and a float."""
    with open(kept_file("losses", f"{name}.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    samples, scores = (np.array([float(row[key]) for row in rows]) for key in ("samples", "score"))
    return samples, scores, float(rows[-1]["identity_score"])


def plot_scaling(dataset):
    """Score against compute, of losses/scaling.csv, the shipped runs and rank 1 of 2023, as losses/scaling.png."""
    with open(TABLE, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, options), marker in zip(SIZES.items(), "osD"):
        flops = training_flops(ResidualUNet(**options), dataset)
        points = [(flops * int(row["samples"]), float(row["score"])) for row in rows if row["size"] == name]
        axes.plot(
            *np.array(points).T, marker, color="0", fillstyle="none", label=f"ResidualUNet, {name}: ends of trainings"
        )
    for name, runs in CHAINS:
        spent, points = 0, []
        for run in runs:
            with open(kept_file("models", f"{run}.json"), encoding="utf-8") as file:
                config = json.load(file)
            network = Depixelation.networks[config["network"]](**config["network_options"])
            flops, (samples, scores, identity) = training_flops(network, dataset), read_log(run)
            points += zip(spent + flops * samples, scores)
            spent = points[-1][0]
            print(f"{run}: {flops / 1e9:.2f} GFLOP a sample, in all {spent:.2e}: {scores[-1]:.2f}")
        parameters = sum(p.numel() for p in network.parameters())
        label = f"{name}, {parameters / 1e6:.2f}M parameters"
        axes.plot(*np.array(points).T, "-o", markersize=3, linewidth=1, label=label)
        if name == RANK_1["network"]:
            first = flops * RANK_1["samples"], RANK_1["score"] * identity / RANK_1["identity_score"]
    axes.plot(*first, "*k", markersize=12, label="rank 1 of 2023 (other photos, scaled by IdentityModel)")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs of training, three times the forward passes")
    axes.set(ylabel="RMSE on the unknown pixels, grey levels; held-out photos, one view")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(which="both", color="0.9")
    axes.legend(fontsize=8)
    save_figure(figure, os.path.join(ROOT, "losses", "scaling.png"))


def memory_of_training(images, cache_dir, workers):
    """Peak PSS in GB of a training process and its workers, over one epoch of the cheapest network."""
    with tempfile.TemporaryDirectory() as output:
        command = [
            sys.executable,
            os.path.join(ROOT, "main.py"),
            "--images",
            images,
            "--cache_dir",
            cache_dir,
            "--output_dir",
            output,
            "--epochs",
            "1",
            "--network",
            "BasicCNN",
            "--network_options",
            '{"channels": 8, "layers": 1}',
            "--workers",
            str(workers),
        ]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        peak = 0
        while process.poll() is None:
            total = 0
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if os.getsid(int(pid)) == process.pid:
                        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
                except (OSError, StopIteration):
                    continue  # it has ended meanwhile
            peak = max(peak, total)
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"training ended with status {process.returncode}")
    return peak * 1024 / 1e9


def measure_data(images, folder):
    """Print what the cache and the data pipeline take; returns the training dataset."""
    opened = lambda: open_cache(images, folder, 0, 10000)  # noqa: E731
    row("cache: first start", seconds(opened), "s")
    row("cache: second start", seconds(opened), "s")
    cache = opened()
    row("cache: images", len(cache), "")
    row("cache: on disk", sum(entry.stat().st_size for entry in os.scandir(cache.path)) / 1e6, "MB")
    dataset = CachedPixelationDataset(cache, split_by_folder(cache.names, 0.06)[0], 0, (0.7, 1.0))
    order = dataset.batches(64, 0)
    samples = rate(lambda: collate([dataset[key] for key in next(order)]), 64)
    row("data: samples a second on one core", samples, "1/s")
    return dataset


def measure_machine(precision):
    """Print how fast the machine multiplies and copies; returns {dtype: FLOPs a second of a matrix product}."""
    row(f"threads, precision auto = {str(precision)[6:]}", torch.get_num_threads(), "")
    matmul = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048, dtype=dtype)
        matmul[dtype] = rate(lambda: a @ a, 2 * 2048**3, 2)
        row(f"matmul 2048, {str(dtype)[6:]}", matmul[dtype] / 1e12, "TFLOP/s")
    a, b = torch.ones(2**27), torch.ones(2**27)  # 512 MB each, far more than any cache
    row("memory: copied, read and written", rate(lambda: a.copy_(b), 2 * 4 * 2**27, 2) / 1e9, "GB/s")
    return matmul


def measure_network(name, dtype, dataset, matmul, shares):
    """Print how fast a network restores and trains; shares: also where the time of a training step goes."""
    network, label = Depixelation.networks[name]().to(memory_format=torch.channels_last), f"{name}, {str(dtype)[6:]}"
    mixed = dataset.batches(64, 0)
    mixed = collate([dataset[key] for _ in range(4) for key in next(mixed)])  # 256 images, as --predict takes them
    predictor = Predictor(network.eval(), CPU, dtype)
    row(f"{label}: restored images a second", rate(lambda: restore(predictor, *mixed[:2]), 256), "1/s")
    window_side = getattr(network, "window_side", None)
    size, count = (Depixelation.Config().batch_size, 16) if window_side else (32, 2)
    keys = itertools.islice(dataset.batches(size, 0, window_side), count)
    batches = [collate([dataset[key] for key in batch]) for batch in keys]
    step = training_step(network, dtype)
    with FlopCounterMode(display=False) as counter:
        step(*batches[0])  # warm
        flops = -counter.get_total_flops()
        for batch in batches:
            step(*batch)
        flops += counter.get_total_flops()
    trained = rate(lambda: [step(*batch) for batch in batches], size * count)
    row(f"{label}: trained images a second, batch {size}", trained, "1/s")
    row(f"{label}: its share of the matmul rate", 100 * trained * flops / (size * count) / matmul, "%")
    for kind, share in time_shares(step, batches).items() if shares else ():
        row(f"{label}: of this, {kind}", 100 * share, "%")


def measure_memory(images, photos, folder):
    """Print the peak memory of trainings on a zip of so many photos, those of the zip images again and again."""
    many = os.path.join(folder, "many.zip")
    with zipfile.ZipFile(images) as source, zipfile.ZipFile(many, "w") as target:
        names = [name for name in source.namelist() if name.lower().endswith(".jpg")]
        for i in range(photos):
            target.writestr(f"{i // 100:04}/{i:07}.jpg", source.read(names[i % len(names)]))
    for workers in (0, 2):
        label = f"memory: training on {photos:,} photos, {workers} workers"
        row(label, memory_of_training(many, folder, workers), "GB")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="synthetic")
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="train from nothing for so long, each")
    parser.add_argument("--photos", type=int, default=35000, help="to measure memory with, of a zip; 0: do not")
    text = "train three sizes, for so long each; none: draw anew"
    parser.add_argument("--scaling", type=float, nargs="*", metavar="MINUTES", help=text)
    arguments = parser.parse_args()
    if arguments.scaling:
        train_sizes(arguments.images, arguments.scaling)
    if arguments.scaling is not None:
        with tempfile.TemporaryDirectory() as folder:
            cache = open_cache("synthetic", folder, 0, 2560)  # their content has no bearing on the FLOPs
            plot_scaling(CachedPixelationDataset(cache, range(2560), 0, (0.7, 1.0)))
        return
    keep_freed_memory()
    torch.manual_seed(0)
    precision = choose_precision("auto", CPU)
    with tempfile.TemporaryDirectory() as folder:
        dataset = measure_data(arguments.images, folder)
        matmul = measure_machine(precision)
        for name in MEASURED:
            for dtype, speed in matmul.items():
                if speed > matmul[torch.float32] / 2:  # else bfloat16 is emulated, and would take minutes a step
                    measure_network(name, dtype, dataset, speed, name == "OddUNet" and dtype == precision)
        for minutes in arguments.minutes:
            with tempfile.TemporaryDirectory() as fresh:
                start = time.perf_counter()  # imports, cache, training, validation
                score = float(train(arguments.images, minutes, fresh, fresh)["score"])
                taken = (time.perf_counter() - start) / 60
            row(f"score after {taken:.1f} minutes, {minutes:g} of them training", score, "")
        if arguments.photos and zipfile.is_zipfile(arguments.images):
            measure_memory(arguments.images, arguments.photos, folder)


if __name__ == "__main__":
    main()
