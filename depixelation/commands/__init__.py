"""What a user asks for, a command a file. A module with a COMMAND is one; nothing else needs to know of it."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from utils import Keys


@dataclass(frozen=True)
class NoOptions(Keys):
    """Of a command that has none of its own."""


@dataclass(frozen=True)
class Command:
    """An option of the command line that asks for something, and what it calls."""

    name: str
    run: Callable  # run(task, options, operands) -> exit status; options: of the command's type
    help: str
    operands: str | int | None = None  # how many follow it: nargs of argparse; None for none
    metavar: object = None
    options: Callable = NoOptions  # a Keys class, or a function of the Task class that returns one
    tasks: tuple | None = None  # the names of those that have it; None: all
    example: str = ""

    def options_type(self, task_type):
        """The Keys class of its options, for a task."""
        return self.options if isinstance(self.options, type) else self.options(task_type)


def commands_of(task_name):
    """{name: Command} of a task, those that belong to few tasks first."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [module.COMMAND for module in modules if hasattr(module, "COMMAND")]
    found = [command for command in found if command.tasks is None or task_name in command.tasks]
    return {command.name: command for command in sorted(found, key=lambda command: command.tasks is None)}
