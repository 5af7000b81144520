"""What training runs on: device, precision and seeds; several processes; workers and signals."""

import contextlib
import ctypes
import datetime
import errno
import functools
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
import timeit
from concurrent.futures import BrokenExecutor

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional as F

from utils import UserError

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
    """Have glibc keep freed memory. Otherwise each step fetches its pages anew, which takes 10 % longer."""
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


def choose_precision(name, device, kept=None):
    """ "auto", "float32" or "bfloat16" -> torch.dtype. On a CPU auto times a convolution of either kind.

    kept: "float32" or "bfloat16", in which a model was validated. Auto keeps it, so that the model always predicts the
    same, unless the other takes less than half of the time.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        faster = kept != "float32" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if faster else torch.float32
    seconds = convolution_seconds()
    limit = {None: 0.8, "float32": 0.5, "bfloat16": 2.0}[kept]
    return torch.bfloat16 if seconds[torch.bfloat16] < limit * seconds[torch.float32] else torch.float32


@functools.cache
def convolution_seconds():
    """{dtype: seconds} of a convolution on this CPU. Measured once: in slow bfloat16 it takes half a second."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(16, 64, 24, 24, dtype=dtype).contiguous(memory_format=torch.channels_last)
        w = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
        seconds[dtype] = min(timeit.repeat(lambda: F.conv2d(x, w, padding=1), number=1, repeat=5))  # noqa: B023
    return seconds


# ------------------------------------------------------------------------------------------------ processes


class PeerLost(Exception):
    """Another process of this training has ended. That one says why; this one stays silent."""


class Processes:
    """The processes that train together: those that torchrun started, or this one alone.

    Each computes the gradients of its share of every batch. All apply the mean gradient, so their weights stay equal.
    Rank 0 validates, prints and writes files.
    """

    def __init__(self):
        self.rank, self.count = 0, 1
        if "TORCHELASTIC_RUN_ID" in os.environ:  # RANK and WORLD_SIZE alone may be leftovers
            self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def join(self, device):
        """Connect to the other processes, if any. Returns the device of this process."""
        if self.count == 1:
            return device
        if device.type == "cuda":
            here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
            if here > gpus:
                raise UserError(
                    f"device: {here} processes share {gpus} GPUs; use --nproc_per_node {gpus}, or --device cpu"
                )
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The timeout covers rank 0's decoding and validation: the others wait for it.
        distributed.init_process_group(backend, timeout=datetime.timedelta(hours=6))
        return device

    def leave(self):
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def wrap(self, network, device):
        """The network for forward passes in training; it averages the gradients over the processes."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, [device] if device.type == "cuda" else None)

    def shares(self, order):
        """The batches of this process: every count-th key of each batch, or the first key if none is left for it."""
        for batch in order:
            yield batch[self.rank :: self.count] or batch[:1]

    @contextlib.contextmanager
    def _together(self):
        """Raise PeerLost where a collective operation fails: one of the processes has ended."""
        try:
            yield
        except RuntimeError as error:
            raise PeerLost from error

    def total(self, number):
        """The sum of a tensor over the processes."""
        if self.count > 1:
            number = number.clone()
            with self._together():
                distributed.all_reduce(number)
        return number

    def gather(self, numbers, device):
        """The numbers of all processes: a (count, len(numbers)) float64 tensor on the CPU."""
        mine = torch.tensor([numbers], dtype=torch.float64)
        if self.count == 1:
            return mine
        mine = mine.to(device)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        with self._together():
            distributed.all_gather(parts, mine)
        return torch.cat(parts).cpu()

    def agree(self, value):
        """The value that rank 0 passed."""
        values = [value]
        if self.count > 1:
            with self._together():
                distributed.broadcast_object_list(values, 0)
        return values[0]

    def collect(self, value):
        """The values that the processes passed, as a list."""
        values = [value] * self.count
        if self.count > 1:
            with self._together():
                distributed.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def first_alone(self):
        """Rank 0 runs the block before the others do."""
        if self.rank:
            with self._together():
                distributed.barrier()
        yield
        if self.count > 1 and not self.rank:
            with self._together():
                distributed.barrier()


# ------------------------------------------------------------------------------------------------ workers and signals


@contextlib.contextmanager
def quiet():
    """Print nothing in the block, except through an exception."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


class _Stream:
    """An output that never fails, even if its reader has gone or its encoding lacks a character of a file's name."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        with contextlib.suppress(OSError):
            encoding = self.stream.encoding or "utf-8"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def lasting_output():
    """Let printing in the block never fail, whatever became of the terminal or pipe."""
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):  # closed by the shell: the next open file would take its number
            try:
                os.fstat(number)
            except OSError:
                os.dup2(nowhere.fileno(), number)
        streams = [stream or nowhere for stream in (sys.stdout, sys.stderr)]
        with contextlib.redirect_stdout(_Stream(streams[0])), contextlib.redirect_stderr(_Stream(streams[1])):
            yield
        for stream in streams:
            try:
                stream.flush()
            except OSError:  # Python would try again at exit, and complain
                os.dup2(nowhere.fileno(), stream.fileno())


def shortage(error, training=False):
    """What to tell the user about a lack of memory, files or processes; None for any other error."""
    text = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return "workers: the system allows too few open files; raise it (ulimit -n), or try fewer --workers"
    if "can't start new thread" in text or (number == errno.EAGAIN and not error.filename):  # from a fork
        return "workers: the system allows too few processes; raise it (ulimit -u), or try fewer --workers"
    if training and (isinstance(error, OverflowError) or "without overflow" in text):
        return "learning_rate: numbers became too large to compute with; try a smaller --learning_rate"
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    told = "can't allocate memory" in text or "not enough memory" in text
    if on_gpu or told or isinstance(error, MemoryError) or number == errno.ENOMEM:
        memory = "the GPU's memory" if on_gpu else "the memory"
        if training:
            return f"batch_size: {memory} is used up; try a smaller --batch_size"
        return f"{memory} is used up; try a smaller picture, or close other programs"
    if isinstance(error, BrokenExecutor) or "DataLoader worker" in text:
        return (
            "workers: a process that prepares images was ended, maybe for want of memory; close other programs, "
            "or try --workers 0"
        )
    return None


OPEN_FILES, WORKER_FILES = 24, 12  # upper bounds: training without workers; pipes and batches of each worker
INTERRUPTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupts:
    """Notes Ctrl-C, SIGTERM and SIGHUP in .received, so that the step can be finished. The same signal again stops at
    once.

    (torchrun answers Ctrl-C, which reaches all processes, with a SIGTERM to each.) Ignored signals stay ignored: nohup
    relies on that.
    """

    def __init__(self, loud=True):
        self.received, self.loud = 0, loud

    def __enter__(self):
        numbers = [number for number in INTERRUPTS if signal.getsignal(number) != signal.SIG_IGN]
        self.previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def check(self):
        """Raise KeyboardInterrupt if a signal came. (A handler cannot: Python drops exceptions raised in a fork.)"""
        if self.received:
            raise KeyboardInterrupt

    def _note(self, number, frame):
        if self.received == number:
            raise KeyboardInterrupt
        if not self.received and self.loud:  # print is not safe in signal handlers
            with contextlib.suppress(OSError):  # a closed terminal must not cost the state
                os.write(2, b"\nStopping after this step; again: at once, without saving.\n")
        self.received = self.received or number

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def workers_end(when=BaseException):
    """Kill the processes that the block started if it raises `when`. They ignore SIGTERM, which Python, its pools and
    PyTorch would send them, and then wait forever.
    """
    before = multiprocessing.active_children()
    try:
        yield
    except when:
        with _no_interrupts():
            left = [process for process in multiprocessing.active_children() if process not in before]
            for process in left:
                process.kill()
            for process in left:
                process.join()
        raise


@contextlib.contextmanager
def _no_interrupts():
    """Ignore signals in the block, and PyTorch's handler for workers that end."""
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS}
    if hasattr(signal, "SIGCHLD"):
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def check_open_files(workers):
    """Raise UserError if the system lets a program open fewer files than so many workers need.

    A worker that runs out of files later only prints the error, and the program would wait for its batch forever.
    """
    try:
        import resource  # Windows lacks it, and such a limit

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = OPEN_FILES + workers * WORKER_FILES
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return
        if hard != resource.RLIM_INFINITY and hard < needed:
            fewer = max(0, (hard - OPEN_FILES) // WORKER_FILES)
            raise UserError(
                f"workers: {workers} may need {needed} open files, of which the system allows {hard} (ulimit -n); "
                f"use --workers {fewer}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except ImportError:
        pass


@contextlib.contextmanager
def errors_of_workers():
    """What a worker raised because of a file is raised as it was; PyTorch puts the worker's traceback into its text."""
    try:
        yield
    except (OSError, UserError) as error:
        told, _, trace = str(error).rpartition("Traceback (most recent call last):\n")
        if not told.startswith("Caught "):
            raise
        lines = [line for line in trace.splitlines() if line[:1].strip()]  # those of the stack are indented
        text = " ".join(lines).partition(": ")[2]
        parts = re.fullmatch(r"\[Errno (\d+)\] (.*?)(?:: '(.*)')?", text)
        if isinstance(error, OSError) and parts:
            raise OSError(int(parts[1]), *parts.groups()[1:]) from None
        raise type(error)(text) from None


def start_worker(worker=None):
    """Called first in a worker: it leaves signals to the process that started it, and ends when that does."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()


def _end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # the parent was killed: nobody else would end this process
