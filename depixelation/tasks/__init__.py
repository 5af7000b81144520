"""The exercises, a file each. A module with a TASK, a subclass of engine.task.Task, is one: --task NAME chooses it."""

import difflib
import importlib
import pkgutil

from utils import UserError


def task_names():
    """The names of all tasks, the default first."""
    modules = [module.name for module in pkgutil.iter_modules(__path__)]
    names = [name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "TASK")]
    return sorted(names, key=lambda name: (name != "depixelation", name))


def load_task(name, where="command line"):
    """The Task subclass of this name. Raises UserError."""
    try:
        if not name.isidentifier():
            raise ModuleNotFoundError(name=f"{__name__}.{name}")
        return importlib.import_module(f"{__name__}.{name}").TASK
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != f"{__name__}.{name}":
            raise
    names = task_names()
    near = difflib.get_close_matches(name, names, 1)
    raise UserError(
        f"{where}: there is no task {name!r}; there are {', '.join(names)}" + (f" (nearest: {near[0]})" if near else "")
    )
