"""A command in one file. --count: how much there is to train on."""

from dataclasses import dataclass

from depixelation.commands import Command
from utils import Keys, key


@dataclass(frozen=True)
class CountOptions(Keys):
    """Of --count."""

    unit: str = key("images", "what is counted", choices=("images", "batches"))


def count(task, options, names):
    """Print how many images or batches an epoch of training has."""
    task.prepare()
    images = task.count_images()
    number = images if options.unit == "images" else -(-images // task.config.batch_size)
    print(f"{', '.join(names)}: {number} {options.unit}")
    return 0


COMMAND = Command("count", count, "count what there is to train on", "+", "NAME", CountOptions, ("depixelation",))
