"""What every command shares: the user's mistakes, the configuration and command line, files."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import io
import json
import math
import os
import sys
import time
import typing
from dataclasses import dataclass, field

import torch

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

ROOT = os.path.dirname(os.path.abspath(__file__))


class UserError(Exception):
    """A mistake that the user can mend. Its text, one line, names the file or key and says what to do."""


# ------------------------------------------------------------------------------------------------ configuration


def key(default, help, **limits):
    """A key of a Config, with what its values must be and how it is treated.

    limits: above, minimum, maximum, choices; path (True: relative to the config file's folder); words (which are no
    path, but name a source of images); check (a function of a value that returns what the value must be instead, or
    None); argparse, more for it; may_change (True: an option may change it when a run is resumed); command (True: it
    belongs to single commands and is no part of a run, so no model keeps it).
    """
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: json.loads(json.dumps(default)), metadata={"help": help, **limits})
    return field(default=default, metadata={"help": help, **limits})


def _run_name(value):
    if not value or value != os.path.basename(value) or value.startswith("."):
        return "a plain file name"
    ends = (".last", "_samples", "_evaluation", "_compared", "_predictions")  # models/a.last.pt is a file of the run a
    return f"a name that does not end in {', '.join(ends)}" if value.endswith(ends) else None


def _small_numbers(value):
    return "without numbers over 10,000" if any(abs(number) > 10_000 for number in _numbers(value)) else None


def _numbers(value):
    """All numbers in a value of JSON."""
    if isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, (int, float)):
        yield value


@dataclass
class Config:
    """The keys that every task has: type, default, limits and meaning. Each is also an option of the command line.

    A task adds its own keys, and its own defaults, in a subclass. A Config is made by `config_from_dict`.
    """

    task: str = key("depixelation", "the exercise")
    images: str = key(
        "synthetic",
        'where the photos are: a folder, a .zip, or "synthetic", drawn by the program',
        path=True,
        words=("synthetic",),
        may_change=True,
    )
    name: str = key(
        "default", "the run's name: it writes models/NAME.pt and losses/NAME.csv", check=_run_name, may_change=True
    )
    network: str = key("", "the architecture")
    network_options: dict = key(
        {}, 'keyword arguments of the architecture, as JSON, such as {"margin": 16}', check=_small_numbers
    )
    epochs: int | None = key(
        None, "passes to train for; given alone it lifts max_minutes", minimum=1, maximum=10**9, may_change=True
    )
    max_minutes: float | None = key(
        15.0,
        "minutes to train, without preparing the images; with epochs, whichever comes first",
        above=0,
        maximum=10**6,
        may_change=True,
    )
    optimizer: str = key(
        "muon", "muon for the filters and AdamW for the rest; or one for all weights", choices=("muon", "adamw", "adam")
    )
    batch_size: int = key(128, "images in a step, of all processes together", minimum=1, maximum=2**20)
    learning_rate: float = key(8e-4, "the peak of the learning rate", above=0)
    warmup: float = key(0.03, "share of the training in which the learning rate rises", minimum=0, maximum=1)
    decay: float = key(
        1.0, "share of the training, the last, in which the learning rate falls to 0", minimum=0, maximum=1
    )
    weight_decay: float = key(0.01, "how fast the optimizer shrinks the weights", minimum=0)
    gradient_clip: float = key(20.0, "largest norm of the gradient", above=0)
    ema_decay: float = key(
        0.998, "decay of the moving average of the weights, which is validated and kept", minimum=0, maximum=0.999999
    )
    synthetic_images: int = key(10000, 'how many images the source "synthetic" has', minimum=2, maximum=10**8)
    max_images: int | None = key(
        None,
        "train on this many samples only, always the same; 2, say, to check that the pipeline learns",
        minimum=1,
    )
    validation_fraction: float = key(
        0.06, "share of the images that is held out, in whole folders", above=0, maximum=0.5
    )
    validate_every: int = key(
        1, "validate, and add a line to the log, once in so many epochs", minimum=1, maximum=10**6, may_change=True
    )
    patience: int | None = key(
        None, "stop after this many validations without a better score", minimum=1, may_change=True
    )
    seed: int = key(0, "decides everything random", minimum=0, maximum=2**32 - 1)
    device: str = key(
        "auto",
        "where to compute; auto takes the GPU where there is one",
        choices=("auto", "cpu", "cuda"),
        may_change=True,
    )
    precision: str = key(
        "auto",
        "number format of the convolutions; auto measures which is faster",
        choices=("auto", "float32", "bfloat16"),
        may_change=True,
    )
    compile: bool = key(False, "train with torch.compile, which needs a C++ compiler on a CPU", may_change=True)
    tensorboard: bool = key(
        False, "log to losses/NAME_tensorboard too, for those who have installed tensorboard", may_change=True
    )
    workers: int | None = key(
        None,
        "processes that prepare batches; none: 0 on a CPU, up to 8 on a GPU",
        minimum=0,
        maximum=1000,
        may_change=True,
    )
    init: str | None = key(None, "a models/NAME.pt to start from", path=True)
    model: str | None = key(
        None,
        "the model file to predict with; none: models/NAME.pt, or, without it and --name, the shipped one",
        path=True,
        command=True,
    )
    cache_dir: str = key(".cache", "where decoded photos are kept", path=True, may_change=True)
    output_dir: str = key(".", "where the folders models and losses are", path=True, may_change=True)

    config_file = None  # no key: where it was read from

    def file(self, folder, suffix, name=None):
        """The path of one of the files of this run, or of the run of that name: folder/NAMEsuffix below output_dir."""
        return os.path.join(self.output_dir, folder, (name or self.name) + suffix)

    def of_run(self):
        """The keys that make the run, as a dict."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata.get("command")}

    def without_paths(self):
        """The keys that make the run, without paths (of images the name is kept): what a model tells of itself."""
        values = {name: value for name, value in self.of_run().items() if not self.is_path(name)}
        return {"images": os.path.basename(self.images), **values}

    @classmethod
    def limits(cls, name):
        """What `key` was told about a key."""
        return next(f.metadata for f in dataclasses.fields(cls) if f.name == name)

    def is_path(self, name):
        """Whether the key holds a path now. Words that name a source of images are none."""
        value = getattr(self, name)
        return "path" in self.limits(name) and value is not None and value not in self.limits(name).get("words", ())


def inherited(name, default, of=None):
    """The key of this name, of Config or of a task's, with another default."""
    limits = dict((of or Config).limits(name))
    return key(default, limits.pop("help"), **limits)


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_WORDS |= {list: "a list", dict: "an object"}


@functools.cache
def _types(config_type):
    """{key: (its type, and NoneType where it may be null)}"""
    hints = typing.get_type_hints(config_type)
    return {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}


def check_value(config_type, name, value, where):
    """The value as the key's type. Raises UserError that begins with `where` and says what the key allows."""
    kind, *others = _types(config_type)[name]
    limits = config_type.limits(name)

    def refuse(allowed):
        shown = json.dumps(value, default=str)
        raise UserError(
            f"{where}: {name} is {shown if len(shown) < 100 else shown[:90] + '...'}, but must be {allowed}"
        )

    if value is None and others:
        return None
    if kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        refuse(_WORDS[kind] + (" or null" if others else ""))
    if "choices" in limits and value not in limits["choices"]:
        near = difflib.get_close_matches(value, limits["choices"], 1, 0)
        refuse(f"one of {', '.join(limits['choices'])}" + (f" (nearest: {near[0]})" if near else ""))
    for word, wrong in (
        ("above", lambda limit: value <= limit),
        ("minimum", lambda limit: value < limit),
        ("maximum", lambda limit: value > limit),
    ):
        if word in limits and wrong(limits[word]):
            refuse({"above": "above ", "minimum": "at least ", "maximum": "at most "}[word] + str(limits[word]))
    if kind is str and "path" in limits and not value:
        refuse("a path")
    if kind is str and "\0" in value:
        refuse("text without NUL characters")
    if "check" in limits and (allowed := limits["check"](value)):
        refuse(allowed)
    return value


def _unknown_key(config_type, name, where, dashes=""):
    near = difflib.get_close_matches(name, _types(config_type), 1)
    hint = f"; did you mean {dashes}{near[0]}?" if near else ""
    return UserError(f"{where}: there is no {'option' if dashes else 'key'} {dashes}{name}{hint}")


def config_from_dict(config_type, values, where, folder=ROOT):
    """A Config from plain values, checked. Relative paths start from folder, those of defaults from the program's."""
    checked = {}
    for name, value in values.items():
        if name not in _types(config_type):
            raise _unknown_key(config_type, name, where)
        checked[name] = check_value(config_type, name, value, where)
    config = config_type(**checked)
    for name in _types(config_type):
        if config.is_path(name):
            start = folder if name in checked else ROOT
            setattr(config, name, os.path.normpath(os.path.join(start, getattr(config, name))))
    return config


def read_config_file(path):
    """The keys and values of a JSON file, not checked yet."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a configuration with --config FILE") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold an object of keys and values, like config.json")
    return values


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and exit."""

    def __init__(self, **options):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog="main.py", allow_abbrev=False, formatter_class=formatter, **options)

    def error(self, message):
        raise UserError(f"command line: {message}; see --help")


def parse_command_line(arguments, config_type, actions, values, where, description, epilog):
    """(action, operands, config, given): the name of the action asked for (None: train), a list of what follows it, the
    Config, the set of keys named as options.

    actions: {name: tasks.Action}. values: of the config file `where`, None where there is none; options override them.
    """
    parser = Parser(description=description, epilog=epilog)
    group = parser.add_argument_group("what to do (without any of these: train)").add_mutually_exclusive_group()
    for name, action in actions.items():
        kind = {"nargs": action.operands, "metavar": action.metavar}
        if action.operands is None:
            kind = {"action": "store_true", "default": None}
        elif action.operands == "?":
            kind["const"] = []
        group.add_argument(f"--{name}", help=action.help, **kind)
    parser.add_argument(
        "--config", metavar="FILE", help="the configuration to start from (depixelation: config.json beside main.py)"
    )
    group = parser.add_argument_group(
        "keys of the configuration", "each is also a key of the config file; an option overrides the file"
    )
    for name in _types(config_type):
        limits = config_type.limits(name)
        choices = f" ({', '.join(limits['choices'])})" if "choices" in limits else ""
        default = json.dumps(getattr(config_type(), name))
        text = f"{limits['help']}{choices}; default {default}".replace("%", "%%")
        group.add_argument(f"--{name}", metavar="VALUE", help=text, **limits.get("argparse", {}))
    known, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        if word.startswith("--"):
            raise _unknown_key(config_type, word[2:].partition("=")[0], "command line", "--")
        raise UserError(f"command line: {word!r} is not expected here; options begin with --, see --help")
    folder = os.path.dirname(os.path.abspath(where)) if where else ROOT
    config = config_from_dict(config_type, values or {}, where, folder)
    config.config_file = where
    here = (values or {}).get("images", "")
    if config.is_path("images") and os.path.exists(here) and not os.path.exists(config.images):
        config.images = os.path.abspath(here)  # the config of a model keeps but their name
    given = {name: getattr(known, name) for name in _types(config_type) if getattr(known, name) is not None}
    for name, text in given.items():
        setattr(config, name, check_value(config_type, name, _parse_option(config_type, name, text), "command line"))
        if config.is_path(name):
            setattr(config, name, os.path.abspath(getattr(config, name)))
    for action in actions:
        operands = getattr(known, action)
        if operands is not None:
            operands = [operands] if isinstance(operands, str) else [] if operands is True else operands
            return action, operands, config, set(given)
    return None, [], config, set(given)


def _parse_option(config_type, name, text):
    """The text of an option as a JSON value: text keys take it as it is, none or null mean None."""
    kind, *others = _types(config_type)[name]
    if isinstance(text, list):
        return [int(word) if str(word).lstrip("-").isdecimal() and len(word) < 20 else word for word in sum(text, [])]
    if others and text.lower() in ("none", "null"):
        return None
    if kind is str:
        return text
    try:
        return json.loads(text)
    except ValueError:  # also a number of too many digits
        return text


# ------------------------------------------------------------------------------------------------ files


def show(path):
    """A path as the user would type it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on another drive
        return path
    shown = path if relative.startswith("..") else relative
    return shown.encode(errors="backslashreplace").decode()  # names need not be valid Unicode


def digest(value):
    """16 hexadecimal digits that tell values, of what JSON can hold, apart."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@contextlib.contextmanager
def atomic_write(path):
    """A binary file that replaces path, or the file it links to, when the block ends, but not when the block fails."""
    path = os.path.realpath(path)
    temporary = f"{path}.tmp"
    try:
        with locked(f"{path}.writing", "write to another file, or again when it is done"):
            try:
                with open(temporary, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                _replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.remove(temporary)
                raise
    except OSError as error:
        if error.filename in (None, temporary, f"{path}.writing"):  # a full disk does not say which file
            error.filename, error.filename2 = path, None
        raise


def _replace(source, path):
    """os.replace, which Windows refuses while another program reads the file: tried for two seconds."""
    for _ in range(20 if sys.platform == "win32" else 0):
        try:
            return os.replace(source, path)
        except PermissionError:
            time.sleep(0.1)
    os.replace(source, path)


@contextlib.contextmanager
def locked(path, advice, wait=False):
    """Keep others out of the block with a lock on the file path, which the system lifts whatever ends the process.

    Where another process holds it, prints advice and waits, or raises UserError that ends with advice. The file goes
    when the block ends.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if os.path.isfile(path) and os.path.getsize(path):
        raise UserError(f"{path}: is in the way of a lock, and not made by this program; move it elsewhere")
    told = False
    while True:
        file = open(path, "a+")  # noqa: SIM115
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # worker processes do not inherit it, as a flock
        except (BlockingIOError, PermissionError):
            file.close()
            if not wait:
                raise UserError(f"{path}: held by another run; {advice}") from None
            if not told:
                print(advice, flush=True)
            told = True
            time.sleep(0.3)
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # the holder ended, and deleted the file, while this process opened it
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if sys.platform != "win32":
                os.remove(path)
        file.close()
        with contextlib.suppress(OSError):
            if sys.platform == "win32":  # where an open file cannot be removed
                os.remove(path)


def save_checkpoint(checkpoint, path):
    """torch.save, atomically. Through memory, because torch.save hides why a file cannot be written."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path, advice, part="weights"):
    """The dict in a .pt file, read with weights_only=True. part: what it must hold beside "config", a dict as that is.

    Raises UserError; advice ends it.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {advice}") from None
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise UserError(f"{path}: not a readable checkpoint ({type(error).__name__}); {advice}") from None
    held = [checkpoint.get(name) for name in ("config", part)] if isinstance(checkpoint, dict) else [None]
    if all(isinstance(value, dict) and all(isinstance(name, str) for name in value) for value in held):
        return checkpoint
    if held[0] and part == "weights" and isinstance(checkpoint.get("parts"), dict):
        raise UserError(f"{path}: is the state of a run, for --resume; name its model, without .last")
    raise UserError(f"{path}: not a checkpoint of this program; {advice}")
