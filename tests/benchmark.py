"""What the data pipeline and the networks cost on this machine, as one table: python tests/benchmark.py [--images X].

Not a test (pytest does not collect it): nothing is asserted, and it wants the machine for itself for some minutes.
Memory is the sum over all processes of their share of it (PSS), so pages that workers share count once.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from architectures import NETWORKS  # noqa: E402
from datasets import PixelationDataset, collate, epoch_order, open_cache, split_by_folder  # noqa: E402
from utils import ROOT, choose_precision, restore, to_inputs, training_loss  # noqa: E402


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="synthetic")
    parser.add_argument(
        "--photos", type=int, default=35000, help="how many photos the memory is measured with (of a zip)"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        opened = lambda images=arguments.images: open_cache(images, folder, 0, 10000)  # noqa: E731
        row("cache: first start", seconds(opened), "s")
        row("cache: second start", seconds(opened), "s")
        cache = opened()
        row("cache: images", len(cache), "")
        row("cache: on disk", sum(entry.stat().st_size for entry in os.scandir(cache.path)) / 1e6, "MB")

        dataset = PixelationDataset(cache, split_by_folder(cache.names, 0.06)[0], 0, (0.7, 1.0))
        order = epoch_order(dataset, 0, 64, 0)
        row(
            "data: samples a second on one core",
            rate(lambda: collate([dataset[key] for key in next(order)]), 64),
            "1/s",
        )

        batch = collate([dataset[key] for key in next(order)])
        pixelated_images, known_arrays, images = batch
        precision = choose_precision("auto", torch.device("cpu"))
        row(f"threads, precision auto = {str(precision)[6:]}", torch.get_num_threads(), "")
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(2048, 2048, dtype=dtype)
            row(f"matmul 2048, {str(dtype)[6:]}", rate(lambda: a @ a, 2 * 2048**3, 2) / 1e12, "TFLOP/s")
        for name, network_type in NETWORKS.items():
            network = network_type().to(memory_format=torch.channels_last)
            for dtype in (torch.float32, torch.bfloat16):
                network.eval()
                label = f"{name}, {str(dtype)[6:]}"
                row(
                    f"{label}: restored images a second",
                    rate(lambda: restore(network, pixelated_images, known_arrays, dtype), 64),
                    "1/s",
                )
                if name == "IdentityModel":
                    continue
                network.train()
                optimizer = torch.optim.AdamW(network.parameters(), 1e-6, fused=True)

                def step():
                    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                        predictions = network(to_inputs(pixelated_images[:32], known_arrays[:32]))
                    loss = training_loss("rmse", predictions, images[:32].float() / 255, known_arrays[:32])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

                row(f"{label}: trained images a second, batch 32", rate(step, 32), "1/s")

        if zipfile.is_zipfile(arguments.images):
            many = os.path.join(folder, "many.zip")
            with zipfile.ZipFile(arguments.images) as source, zipfile.ZipFile(many, "w") as target:
                names = [name for name in source.namelist() if name.lower().endswith(".jpg")]
                for i in range(arguments.photos):
                    target.writestr(f"{i // 100:04}/{i:07}.jpg", source.read(names[i % len(names)]))
            for workers in (0, 2):
                row(
                    f"memory: training on {arguments.photos:,} photos, {workers} workers",
                    memory_of_training(many, folder, workers),
                    "GB",
                )


if __name__ == "__main__":
    main()
