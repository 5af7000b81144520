"""Shared by all modules: user errors, keys and their checks, the training configuration, and files."""

import contextlib
import dataclasses
import difflib
import errno
import functools
import glob
import hashlib
import io
import json
import math
import os
import re
import secrets
import sys
import time
import typing
import zipfile
from dataclasses import dataclass, field, fields, replace

import torch

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

TEMPORARY = ".depixelation"  # suffix of files that are still being written
ROOT = os.path.dirname(os.path.abspath(__file__))


class UserError(Exception):
    """A mistake that the user can fix. Its text, one line, names the file or key and says what to do."""


# ------------------------------------------------------------------------------------------------ keys


def key(default, help, **limits):
    """Define a key of a Config, or of a command's options: its default, help text and allowed values.

    limits: above, minimum, maximum, choices; path (True: relative to the config file's folder); words (names of image
    sources, which are not paths); check (a function that returns None, or what the value must be instead); argparse
    (further keywords of add_argument); may_change (True: --resume may change it); group (in --help).
    """
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: json.loads(json.dumps(default)), metadata={"help": help, **limits})
    return field(default=default, metadata={"help": help, **limits})


def inherited(name, default, of=None):
    """A copy of the key of this name, of Config or of the class `of`, with another default."""
    limits = dict((of or Config).limits(name))
    return key(default, limits.pop("help"), **limits)


class Keys:
    """Base class of Config and of commands' options: dataclasses whose fields `key` defines."""

    @classmethod
    def limits(cls, name):
        """The help text and limits that `key` was given."""
        return next(f.metadata for f in fields(cls) if f.name == name)

    @classmethod
    def path_keys(cls, values):
        """The names in `values` whose values are paths. Words that name an image source are not paths."""
        limits = {f.name: f.metadata for f in fields(cls)}
        return [
            name
            for name, value in values.items()
            if value is not None and "path" in limits[name] and value not in limits[name].get("words", ())
        ]


# ------------------------------------------------------------------------------------------------ the configuration


def _run_name(value):
    if not value or value != os.path.basename(value) or value.startswith("."):
        return "a plain file name"
    ends = (".last", "_samples", "_evaluation", "_compared", "_predictions")  # models/a.last.pt is a file of the run a
    return f"a name that does not end in {', '.join(ends)}" if value.endswith(ends) else None


def _small_numbers(value):
    return "without numbers over 10,000" if any(abs(number) > 10_000 for number in _numbers(value)) else None


def _numbers(value):
    """Yield all numbers in a JSON value."""
    if isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, (int, float)):
        yield value


@dataclass(frozen=True)
class Config(Keys):
    """The training keys that all tasks share: type, default, limits and meaning.

    Each is also a command-line option. A task adds its own keys and defaults in a subclass. `config_from_dict` makes a
    Config.
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
        None, "passes over the images; named alone, it lifts max_minutes", minimum=1, maximum=10**9, may_change=True
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
    batch_size: int = key(128, "images per step, over all processes", minimum=1, maximum=2**20)
    learning_rate: float = key(8e-4, "the peak of the learning rate", above=0)
    warmup: float = key(0.03, "share of the training in which the learning rate rises", minimum=0, maximum=1)
    decay: float = key(1.0, "last share of the training, in which the learning rate falls to 0", minimum=0, maximum=1)
    weight_decay: float = key(0.01, "how fast the optimizer shrinks the weights", minimum=0)
    gradient_clip: float = key(20.0, "largest norm of the gradient", above=0)
    ema_decay: float = key(
        0.998, "decay of the moving average of the weights, which is validated and kept", minimum=0, maximum=0.999999
    )
    synthetic_images: int = key(10000, 'number of images that the source "synthetic" draws', minimum=2, maximum=10**8)
    max_images: int | None = key(
        None,
        "train on this many samples only, always the same; with 2, check that the pipeline can overfit",
        minimum=1,
    )
    validation_fraction: float = key(0.06, "share of the images to hold out, in whole folders", above=0, maximum=0.5)
    validate_every: int = key(
        1, "validate and add a line to the log every so many epochs", minimum=1, maximum=10**6, may_change=True
    )
    patience: int | None = key(
        None, "stop after this many validations without a better score", minimum=1, may_change=True
    )
    seed: int = key(0, "seed of everything random", minimum=0, maximum=2**32 - 1)
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
    tensorboard: bool = key(
        False, "also log to losses/NAME_tensorboard; needs the package tensorboard", may_change=True
    )
    workers: int | None = key(
        None,
        "processes that prepare batches; none: 0 on a CPU, up to 8 on a GPU",
        minimum=0,
        maximum=1000,
        may_change=True,
    )
    init: str | None = key(None, "a models/NAME.pt to start from", path=True)
    cache_dir: str = key(".cache", "where decoded photos are kept", path=True, may_change=True)
    output_dir: str = key(".", "where the folders models and losses are", path=True, may_change=True)

    def file(self, folder, suffix, name=None):
        """The path of a file of this run, or of the run `name`: folder/NAMEsuffix below output_dir."""
        return os.path.join(self.output_dir, folder, (name or self.name) + suffix)

    def images_name(self):
        """The image source as a model records it: the base name, never mistakable for a word such as "synthetic"."""
        words, name = self.limits("images")["words"], os.path.basename(self.images)
        return os.path.join(".", name) if name in words and self.images not in words else name

    def without_paths(self):
        """The keys that a model records: all but paths; of `images` only the base name."""
        values = dataclasses.asdict(self)
        paths = self.path_keys(values)
        values = {name: value for name, value in values.items() if name not in paths}
        return {"images": self.images_name(), **values}

    def completed(self):
        """The config with the values that follow from other keys; a subclass may override this."""
        return self


# Keys of earlier versions' configs. Most are options of single commands now; the first three are gone.
RETIRED = "compile teacher teacher_share model views realism refiner samples test_set submission area sensitivity "
RETIRED = frozenset((RETIRED + "output overwrite preview json block_size grid average quality sheet").split())

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_WORDS |= {list: "a list", dict: "an object"}


@functools.cache
def key_types(keys):
    """{key: (its type, and NoneType where it may be null)} of a Keys class."""
    hints = typing.get_type_hints(keys)
    return {f.name: typing.get_args(hints[f.name]) or (hints[f.name],) for f in fields(keys)}


def _is_encodable(text):
    try:
        return os.fsencode(text) is not None  # names of files need not be valid Unicode
    except UnicodeEncodeError:
        return False


def check_value(keys, name, value, where):
    """Check the value of a key of a Keys class, and return it in the key's type.

    Raises UserError, which begins with `where` and says what the key allows.
    """
    kind, *others = key_types(keys)[name]
    limits = keys.limits(name)

    def refuse(allowed):
        text = json.dumps(value, default=str)
        raise UserError(
            f"{where}: {name} is {text if len(text) < 100 else text[:90] + '...'}, but must be {allowed}"
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
    if kind is str and ("\0" in value or not _is_encodable(value)):
        refuse("text without NUL characters and lone surrogates")
    if "check" in limits and (allowed := limits["check"](value)):
        refuse(allowed)
    return value


def unknown_key(name, known, where, dashes=""):
    """The UserError for an unknown key, or with dashes, an unknown option. known: the names that exist."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {dashes}{near[0]}?" if near else ""
    return UserError(f"{where}: there is no {'option' if dashes else 'key'} {dashes}{name}{hint}")


def config_from_dict(config_type, values, where, folder=ROOT):
    """Make a Config from plain values, checked. Relative paths start from `folder`, those of defaults from ROOT.

    Keys of earlier versions are ignored.
    """
    checked = {}
    for name, value in values.items():
        if name in key_types(config_type):
            checked[name] = check_value(config_type, name, value, where)
        elif name not in RETIRED:
            raise unknown_key(name, key_types(config_type), where)
    return with_absolute_paths(config_type(**checked), checked, folder).completed()


def with_absolute_paths(keys, named, folder):
    """The keys with absolute paths: those in `named` are relative to `folder`, the others to ROOT."""
    values = {f.name: getattr(keys, f.name) for f in fields(keys)}
    paths = {
        name: os.path.normpath(os.path.join(folder if name in named else ROOT, values[name]))
        for name in keys.path_keys(values)
    }
    return replace(keys, **paths)


def override(config, named):
    """Apply the named options to the config. Naming epochs alone lifts max_minutes, and vice versa."""
    ends = named.keys() & {"epochs", "max_minutes"}
    if len(ends) == 1 and named[next(iter(ends))] is not None:
        named = {**named, "max_minutes" if ends == {"epochs"} else "epochs": None}
    return replace(config, **named).completed()


def read_config_file(path):
    """The keys and values of a JSON file, unchecked."""
    try:
        with open_plain(path, "r", encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a configuration with --config FILE") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold an object of keys and values, like config.json")
    return values


# ------------------------------------------------------------------------------------------------ files


def display_path(path):
    """A path as the user would type it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on another drive
        return path
    typed = path if relative.startswith("..") else relative
    typed = typed.encode(errors="backslashreplace").decode()  # names need not be valid Unicode,
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], typed)  # nor keep to one line


def digest(value):
    """The first 16 hexadecimal digits of a JSON value's SHA-256."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def open_plain(path, mode="rb", **options):
    """open() for reading, but raise OSError for pipes and devices: opening a pipe could wait forever."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "is no plain file", path)
    return open(path, mode, **options)


@contextlib.contextmanager
def atomic_write(path):
    """Open a binary file that replaces `path`, or the file it links to, once the block has succeeded."""
    path = os.path.realpath(path)
    folder, base = os.path.split(path)
    stem = os.path.join(folder, f".{digest(base)}-")  # prefix of this file's temporary files alone
    temporary = f"{stem}{secrets.token_hex(4)}{TEMPORARY}"
    try:
        with locked(f"{path}.writing", "write to another file, or again when it is done"):
            for abandoned in glob.glob(f"{glob.escape(stem)}*{TEMPORARY}"):  # left by a process that was killed
                os.remove(abandoned)
            try:
                with open(temporary, "xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                _replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.remove(temporary)
                raise
    except OSError as error:
        if error.filename in (None, temporary, f"{path}.writing"):  # the error of a full disk names no file
            error.filename, error.filename2 = path, None
        raise


def _replace(source, path):
    """os.replace, retried for two seconds on Windows, which refuses while another program reads the file."""
    for _ in range(20 if sys.platform == "win32" else 0):
        try:
            return os.replace(source, path)
        except PermissionError:
            time.sleep(0.1)
    os.replace(source, path)


@contextlib.contextmanager
def locked(path, advice, wait=False):
    """Hold a lock on the file `path` during the block; the system releases it however the process ends.

    If another process holds it, print `advice` and wait, or raise UserError, which ends with `advice`. The file is
    deleted when the block ends.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path)):
        raise UserError(f"{path}: is in the way of a lock, and not made by this program; move it elsewhere")
    announced = False
    while True:
        file = open(path, "a+")  # noqa: SIM115
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike a flock, not inherited by workers
        except (BlockingIOError, PermissionError):
            file.close()
            if not wait:
                raise UserError(f"{path}: held by another run; {advice}") from None
            if not announced:
                print(advice, flush=True)
            announced = True
            time.sleep(0.3)
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # the holder deleted the file while this process was opening it
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if sys.platform != "win32":
                os.remove(path)
        file.close()
        with contextlib.suppress(OSError):
            if sys.platform == "win32":  # which cannot remove an open file
                os.remove(path)


def save_checkpoint(checkpoint, path):
    """torch.save, atomically, and via memory: torch.save itself hides why a file cannot be written."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path, advice, part="weights"):
    """The dict in a .pt file, read with weights_only=True. It must hold two dicts: "config" and `part`.

    Raises UserError, which ends with `advice`.
    """
    try:
        with open_plain(path) as file:
            if zipfile.is_zipfile(file):  # torch.save does not compress: what unpacks to far more is no model
                with zipfile.ZipFile(file) as archive:
                    unpacked = sum(member.file_size for member in archive.infolist())
                if unpacked > 2 * os.path.getsize(path):
                    raise ValueError("it unpacks to far more than its size")
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {advice}") from None
    except Exception as error:  # torch raises many types for files of other programs
        raise UserError(f"{path}: not a readable checkpoint ({type(error).__name__}); {advice}") from None
    held = [checkpoint.get(name) for name in ("config", part)] if isinstance(checkpoint, dict) else [None]
    if all(isinstance(value, dict) and all(isinstance(name, str) for name in value) for value in held):
        return checkpoint
    if held[0] and part == "weights" and isinstance(checkpoint.get("parts"), dict):
        raise UserError(f"{path}: is the state of a run, for --resume; name its model, without .last")
    raise UserError(f"{path}: not a checkpoint of this program; {advice}")
