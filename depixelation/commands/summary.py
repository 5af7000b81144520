"""--summary: every network of a task, layer by layer or block by block."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from architectures import BLOCKS
from depixelation.commands import Command
from depixelation.symmetry import PairReLU


def layers_and_blocks(module, name=""):
    """(name, module) of each block, and of each layer outside of blocks, in order."""
    if name and (isinstance(module, BLOCKS) or not module._modules):
        yield name, module
    else:
        for part, child in module.named_children():
            yield from layers_and_blocks(child, f"{name}.{part}" if name else part)


def summarize(task, options, operands):
    """--summary: print every network of the task in its configured or default shape."""
    config = task.config
    for name in task.networks:
        network = task.build_network(name, config.network_options if name == config.network else {}).eval()
        shapes = {}  # of each layer's output, without the number of images
        for _, module in layers_and_blocks(network):
            module.register_forward_hook(lambda layer, _, output: shapes.update({layer: output.shape[1:]}))
        # bfloat16 avoids parities, which would halve the FLOPs and hold half of the channels twice
        paired = any(isinstance(module, PairReLU) for module in network.modules())
        precision = torch.autocast("cpu", torch.bfloat16, enabled=paired)
        with torch.inference_mode(), precision, FlopCounterMode(display=False) as counter:
            network(task.example_input())
        flops = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
        parameters = sum(p.numel() for p in network.parameters())
        print(f"\n{name}: {parameters:,} parameters, {counter.get_total_flops() / 1e9:.3f} GFLOP an image")
        for part, module in layers_and_blocks(network):
            shape, weights = "x".join(map(str, shapes.get(module, ()))), sum(p.numel() for p in module.parameters())
            print(
                f"  {part:<12} {type(module).__name__:<15} -> {shape:<10} {weights:>9,} parameters "
                f"{flops.get(f'{name}.{part}', 0) / 1e6:>8.1f} MFLOP  {module.extra_repr()}".rstrip()
            )
    return 0


COMMAND = Command(
    "summary",
    summarize,
    "print each network's layers or blocks, parameters and forward FLOPs per image",
    example="python main.py --summary",
)
