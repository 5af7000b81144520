"""What the entry points share: configuration, errors, seeds, files, the challenge's score, pictures."""

import argparse
import contextlib
import ctypes
import dataclasses
import difflib
import io
import json
import math
import os
import random
import sys
import time
import typing
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from architectures import NETWORKS

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

ROOT = os.path.dirname(os.path.abspath(__file__))


class UserError(Exception):
    """A mistake that the user can mend. Its text, one line, names the file or key and says what to do."""


# ------------------------------------------------------------------------------------------------ configuration


def _key(default, help, **limits):
    """A configuration key. limits: above, minimum, maximum, choices, path (relative to the config file's folder)."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: json.loads(json.dumps(default)), metadata={"help": help, **limits})
    return field(default=default, metadata={"help": help, **limits})


@dataclass
class Config:
    """Every key of config.json, which is also an option of the command line: its type, default, limits and meaning."""

    images: str = _key(
        "synthetic", 'where the photos are: a folder, a .zip, or "synthetic", drawn by the program', path=True
    )
    name: str = _key("default", "of the run: it writes models/NAME.pt and losses/NAME.csv")
    network: str = _key("ResidualUNet", "the architecture", choices=tuple(NETWORKS))
    network_options: dict = _key({}, 'keyword arguments of the architecture, as JSON: {"channels": [32, 64, 128]}')
    loss: str = _key("rmse", "rmse, the challenge's score, or mse, both on the unknown pixels", choices=("rmse", "mse"))
    epochs: typing.Optional[int] = _key(
        None, "train for so many passes over the images; as an option alone it lifts max_minutes", minimum=1
    )
    max_minutes: typing.Optional[float] = _key(
        15.0, "train for so long, preparing the images not counted; with epochs, whatever comes first", above=0
    )
    optimizer: str = _key("muon", "muon, for the filters, or adamw for all weights", choices=("muon", "adamw"))
    batch_size: int = _key(128, "images a step, of all processes together", minimum=1, maximum=2**20)
    learning_rate: float = _key(8e-4, "its peak", above=0)
    warmup: float = _key(0.03, "share of the training in which the learning rate rises", minimum=0, maximum=1)
    decay: float = _key(
        1.0, "share of the training, its last, in which the learning rate falls to 0", minimum=0, maximum=1
    )
    weight_decay: float = _key(0.01, "of the optimizer", minimum=0)
    gradient_clip: float = _key(20.0, "largest norm of the gradient", above=0)
    ema_decay: float = _key(
        0.998, "of the moving average of the weights that is validated and kept", minimum=0, maximum=0.999999
    )
    crop_scale: list = _key(
        [0.7, 1.0], "side of the random crops, smallest and largest, as a share of the photo's shortest side"
    )
    synthetic_images: int = _key(10000, 'how many images the source "synthetic" has', minimum=2, maximum=10**8)
    validation_fraction: float = _key(
        0.06, "share of the images that is held out, in whole folders", above=0, maximum=0.5
    )
    patience: typing.Optional[int] = _key(None, "stop after so many epochs without a better score", minimum=1)
    seed: int = _key(0, "of everything random", minimum=0, maximum=2**32 - 1)
    device: str = _key("auto", "auto takes the GPU where there is one", choices=("auto", "cpu", "cuda"))
    precision: str = _key(
        "auto", "of the convolutions; auto measures which is faster", choices=("auto", "float32", "bfloat16")
    )
    compile: bool = _key(False, "train with torch.compile, which needs a C++ compiler on a CPU")
    tensorboard: bool = _key(False, "log to losses/NAME_tensorboard too, for those who have installed tensorboard")
    workers: typing.Optional[int] = _key(
        None, "processes that prepare batches; none: 0 on a CPU, up to 8 on a GPU", minimum=0, maximum=1000
    )
    init: typing.Optional[str] = _key(None, "a models/NAME.pt to start from", path=True)
    model: typing.Optional[str] = _key(
        None,
        "the checkpoint to predict with; none: models/NAME.pt, or as long as there is none the one shipped",
        path=True,
    )
    views: int = _key(
        8,
        "predictions to average, of the image flipped and transposed; 1 is fastest (ResidualUNet)",
        minimum=1,
        maximum=8,
    )
    test_set: str = _key("test_set.pkl", "the challenge's test pickle", path=True)
    submission: str = _key("submission.bin", "the challenge file that --predict writes", path=True)
    area: typing.Optional[list] = _key(
        None, "x, y, width and height of the rectangle in own photos, in pixels", nargs=4
    )
    block_size: typing.Optional[int] = _key(None, "of the blocks that --pixelate makes, in pixels a side", minimum=2)
    cache_dir: str = _key(".cache", "where decoded photos are kept", path=True)
    output_dir: str = _key(".", "where the folders models and losses are", path=True)

    def file(self, folder, suffix):
        """The path of one of the run's files: folder/NAMEsuffix below output_dir."""
        return os.path.join(self.output_dir, folder, self.name + suffix)

    def without_paths(self):
        """The keys as a dict, less those that hold a path (of images the name): what a model tells of its making."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if not _is_path(key, value)}
        return {"images": os.path.basename(self.images), **values}


_FIELDS = {key.name: key for key in dataclasses.fields(Config)}
_TYPES = typing.get_type_hints(Config)
_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def check_value(key, value, where):
    """The value as the key's type. Raises UserError that begins with `where` and says what the key allows."""
    options = typing.get_args(_TYPES[key]) or (_TYPES[key],)
    limits = _FIELDS[key].metadata

    def refuse(allowed):
        raise UserError(f"{where}: {key} is {json.dumps(value, default=str)}, but must be {allowed}")

    if value is None and type(None) in options:
        return None
    kind = options[0]
    if kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        refuse(_WORDS[kind] + (" or null" if type(None) in options else ""))
    if "choices" in limits and value not in limits["choices"]:
        near = difflib.get_close_matches(value, limits["choices"], 1, 0)
        refuse(
            f"one of {', '.join(limits['choices'])} (nearest: {near[0]})"
            if near
            else f"one of {', '.join(limits['choices'])}"
        )
    for word, wrong in (
        ("above", lambda limit: value <= limit),
        ("minimum", lambda limit: value < limit),
        ("maximum", lambda limit: value > limit),
    ):
        if word in limits and wrong(limits[word]):
            refuse({"above": "above ", "minimum": "at least ", "maximum": "at most "}[word] + str(limits[word]))
    if key == "crop_scale":
        numbers = len(value) == 2 and all(type(x) in (int, float) for x in value)
        if not numbers or not 0 < value[0] <= value[1] <= 1:
            refuse("two numbers, 0 < smallest <= largest <= 1")
    if key == "area" and (len(value) != 4 or not all(type(x) is int and x >= 0 for x in value)):
        refuse("four whole numbers: x, y, width, height")
    if key == "name" and (not value or value != os.path.basename(value) or value.startswith(".")):
        refuse("a plain file name, without folders")
    if kind is str and "path" in limits and not value:
        refuse("a path")
    if kind is str and "\0" in value:
        refuse("text without NUL characters")
    if key == "network_options" and any(abs(number) > 10_000 for number in _numbers(value)):
        refuse("without numbers over 10,000")
    return value


def _numbers(value):
    """All numbers in a value of JSON."""
    if isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, (int, float)):
        yield value


def _unknown_key(key, where, dashes=""):
    near = difflib.get_close_matches(key, _FIELDS, 1)
    hint = f"; did you mean {dashes}{near[0]}?" if near else ""
    return UserError(f"{where}: there is no {'option' if dashes else 'key'} {dashes}{key}{hint}")


def _is_path(key, value):
    return "path" in _FIELDS[key].metadata and value is not None and not (key == "images" and value == "synthetic")


def config_from_dict(values, where, folder=ROOT):
    """A Config from plain values, checked. Relative paths start from folder, those of defaults from the program's."""
    checked = {}
    for key, value in values.items():
        if key not in _FIELDS:
            raise _unknown_key(key, where)
        checked[key] = check_value(key, value, where)
    config = Config(**checked)
    for key in _FIELDS:
        if _is_path(key, getattr(config, key)):
            start = folder if key in checked else ROOT
            setattr(config, key, os.path.normpath(os.path.join(start, getattr(config, key))))
    return config


def read_config(path):
    """The Config of a JSON file; keys it leaves out have their defaults, relative paths start from its folder."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a configuration with --config FILE") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold an object of keys and values, like config.json")
    return config_from_dict(values, path, os.path.dirname(os.path.abspath(path)))


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")


def parse_command_line(arguments, description, actions, epilog):
    """(action, operands, config, given): the name of the action asked for, a list of what follows it, the Config, the
    set of keys named as options.

    actions: {name: (nargs and metavar for argparse or None, help)}; without one the action is "train". First the file
    (--config), then the options over it.
    """
    parser = _Parser(
        prog="main.py",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group("what to do (without any of these: train)").add_mutually_exclusive_group()
    for name, (count, metavar, text) in actions.items():
        kind = {"action": "store_true", "default": None} if count is None else {"nargs": count, "metavar": metavar}
        if count == "?":
            kind["const"] = []
        group.add_argument(f"--{name}", help=text, **kind)
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=os.path.join(ROOT, "config.json"),
        help="the configuration to start from (default: config.json beside main.py)",
    )
    group = parser.add_argument_group(
        "keys of the configuration", "each is also a key of config.json; an option goes before the file"
    )
    for key in _FIELDS.values():
        default = json.dumps(getattr(Config(), key.name))
        choices = f" ({', '.join(key.metadata['choices'])})" if "choices" in key.metadata else ""
        group.add_argument(
            f"--{key.name}",
            metavar="VALUE",
            default=None,
            nargs=key.metadata.get("nargs"),
            help=f"{key.metadata['help']}{choices}; default {default}".replace("%", "%%"),
        )
    known, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        if word.startswith("--"):
            raise _unknown_key(word[2:].partition("=")[0], "command line", "--")
        raise UserError(f"command line: {word!r} is not expected here; options begin with --, see --help")
    config = read_config(known.config)
    given = {key: getattr(known, key) for key in _FIELDS if getattr(known, key) is not None}
    for key, text in given.items():
        value = check_value(key, _parse_option(key, text), "command line")
        setattr(config, key, os.path.abspath(value) if _is_path(key, value) else value)
    for action in actions:
        operands = getattr(known, action)
        if operands is not None:
            operands = [operands] if isinstance(operands, str) else [] if operands is True else operands
            return action, operands, config, set(given)
    return "train", [], config, set(given)


def _parse_option(key, text):
    """The text of an option as a JSON value: text keys take it as it is, none or null mean None."""
    kinds = typing.get_args(_TYPES[key]) or (_TYPES[key],)
    if isinstance(text, list):
        return [int(word) if word.lstrip("-").isdecimal() else word for word in text]
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    if kinds[0] is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


# ------------------------------------------------------------------------------------------------ device and seeds


def seed_everything(seed):
    """Seed Python, NumPy and torch. (Data draws from generators of its own, seeded per sample.)"""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state():
    """The state of the three global generators in types that torch.load(weights_only=True) accepts."""
    name, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state()}


def set_rng_state(state):
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])


def keep_freed_memory():
    """Have glibc keep freed memory: returned to the system, each step's activations would be faulted in anew (10 %)."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
                mallopt(option, value)


def choose_device(name):
    """ "auto", "cpu" or "cuda" -> torch.device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but PyTorch finds no GPU; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def choose_precision(name, device):
    """ "auto", "float32" or "bfloat16" -> torch.dtype. On a CPU auto times a convolution of either kind."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(16, 64, 24, 24, dtype=dtype).contiguous(memory_format=torch.channels_last)
        w = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
        seconds[dtype] = min(_seconds(lambda: F.conv2d(x, w, padding=1)) for _ in range(5))
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else torch.float32


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------ files


@contextlib.contextmanager
def atomic_write(path):
    """A binary file that takes the place of path when the block ends, and leaves it as it was when the block fails."""
    temporary = f"{path}.tmp"
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say which file
            error.filename = str(path)
        raise


@contextlib.contextmanager
def locked(path, advice):
    """Keep others out of the block with a lock on the file path, which the system lifts whatever ends the process.

    Raises UserError that ends with advice where another process holds it. The file goes when the block ends.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    while True:
        file = open(path, "a+")  # noqa: SIM115
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # worker processes do not inherit it, as a flock
        except (BlockingIOError, PermissionError):
            file.close()
            raise UserError(f"{path}: held by another run; {advice}") from None
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


def load_checkpoint(path, advice):
    """The dict in a .pt file, read with weights_only=True. advice ends the UserError where there is none."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {advice}") from None
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise UserError(f"{path}: not a readable checkpoint ({type(error).__name__}); {advice}") from None
    parts = [checkpoint.get(key) for key in ("config", "weights")] if isinstance(checkpoint, dict) else [None]
    if not all(isinstance(part, dict) and all(isinstance(key, str) for key in part) for part in parts):
        raise UserError(f"{path}: not a checkpoint of this program; {advice}")
    return checkpoint


# ------------------------------------------------------------------------------------------------ loss and score


def to_inputs(pixelated_images, known_arrays):
    """uint8 and bool, (N, 1, H, W) -> what networks take, (N, 2, H, W) float32: grey values and mask in [0, 1]."""
    return torch.cat([pixelated_images.float() / 255, known_arrays.float()], dim=1)


def _mse_per_image(predictions, images, known_arrays):
    unknown = ~known_arrays
    return ((predictions - images) ** 2 * unknown).flatten(1).sum(1) / unknown.flatten(1).sum(1)


def rmse_per_image(predictions, images, known_arrays):
    """The root mean squared error over each image's unknown pixels (known False), (N,), in the units of the images.

    All (N, 1, H, W). The challenge's score is its mean over the images, on uint8 values: give float64 for that.
    """
    return _mse_per_image(predictions, images, known_arrays).sqrt()


def training_loss(kind, predictions, images, known_arrays):
    """In grey levels (of 255). rmse: mean over images of the RMSE; mse: mean over all unknown pixels, squared levels.

    predictions and images: (N, 1, H, W) float in [0, 1]; known_arrays: bool, False where the loss is taken. Returns the
    loss and, as a float64 tensor, the number of images or pixels that it is the mean of.
    """
    if kind == "mse":
        loss, count = F.mse_loss(predictions[~known_arrays] * 255, images[~known_arrays] * 255), (~known_arrays).sum()
        return loss, count.double()
    # The root has no gradient at 0; 1e-8 is (0.03 grey levels)^2.
    losses = 255 * (_mse_per_image(predictions, images, known_arrays) + 1e-8).sqrt()
    return losses.mean(), losses.new_tensor(len(losses), dtype=torch.float64)


class FilterMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for convolution filters: each is a matrix of outputs x (height * width * inputs).

    Its updates have the size of AdamW's (Liu et al. 2025), times the scale of its parameter group.
    """

    def __init__(self, filters, weight_decay):
        """filters: (out, in, h, w) parameters in channels_last format; the optimizer works on views of them."""
        self.filters = list(filters)
        matrices = [nn.Parameter(self._matrix(weight.detach())) for weight in self.filters]
        group = {"params": matrices, "scale": 3.0}  # best of 1, 3 and 6 in runs of three minutes
        super().__init__([group], weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @staticmethod
    def _matrix(weight):
        return weight.permute(0, 2, 3, 1).view(len(weight), -1)

    def step(self):
        for matrix, weight in zip(self.param_groups[0]["params"], self.filters):
            matrix.grad = self._matrix(weight.grad.contiguous(memory_format=torch.channels_last))
        super().step()


def build_optimizers(kind, parameters, weight_decay):
    """The optimizers that together train the parameters. muon: for filters between at least 32 channels; else AdamW.

    The learning rate of each parameter group is to be multiplied with its "scale".
    """
    filters = [p for p in parameters if kind == "muon" and p.ndim == 4 and min(p.shape[:2]) >= 32]
    chosen = {id(p) for p in filters}
    others = [p for p in parameters if id(p) not in chosen]
    group = {"params": others, "scale": 1.0}
    adamw = torch.optim.AdamW([group], betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    return [adamw, FilterMuon(filters, weight_decay)] if filters else [adamw]


def check_finite(loss, epoch, step, learning_rate):
    """The loss, if it is finite; else UserError with advice."""
    if not math.isfinite(loss):
        raise UserError(
            f"learning_rate: the loss became {loss} in epoch {epoch}, at or before step {step}; try a smaller "
            f"one than {learning_rate:g}, or --precision float32, under another --name. The last saved model is kept"
        )
    return loss


@torch.inference_mode()
def restore_float(network, pixelated_images, known_arrays, precision):
    """The network's output, (N, 1, H, W) float32, for (N, 1, H, W) uint8 images and bool masks.

    precision: torch.dtype of the convolutions.
    """
    with torch.autocast(pixelated_images.device.type, precision, enabled=precision != torch.float32):
        return network(to_inputs(pixelated_images, known_arrays)).float()


def restore(network, pixelated_images, known_arrays, precision):
    """Predictions as they are submitted: (N, 1, H, W) uint8, clamped and rounded, known pixels unchanged.

    The arguments are those of `restore_float`.
    """
    outputs = restore_float(network, pixelated_images, known_arrays, precision)
    return torch.where(known_arrays, pixelated_images, (outputs * 255).clamp(0, 255).round().to(torch.uint8))
