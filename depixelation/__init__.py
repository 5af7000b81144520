"""Restores images: the package behind main.py. From Python: `from depixelation import restore`."""


def __getattr__(name):
    """`restore` and its `Restored`, imported when they are asked for: the modules of the package need neither."""
    if name not in ("restore", "Restored"):
        raise AttributeError(f"module 'depixelation' has no attribute {name!r}")
    from depixelation import notebook

    return getattr(notebook, name)
