"""Processes and signals: training in several processes, workers that end with their parent, interrupted runs."""

import contextlib
import datetime
import os
import signal
import threading
import time

import torch
from torch import distributed, nn

from utils import UserError


class Processes:
    """The processes that train together: those that torchrun started, or this one alone.

    Each computes the gradients of its share of every batch; all apply their mean, and so have the same weights. The
    first, of rank 0, validates, prints and writes files.
    """

    def __init__(self):
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def join(self, device):
        """Meet the others, where there are any. Returns the device of this process."""
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
        # They wait for the first also while it decodes photos and validates.
        distributed.init_process_group(backend, timeout=datetime.timedelta(hours=6))
        return device

    def leave(self):
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def wrap(self, network, device):
        """The network for forward passes in training: of its gradients each process gets the mean."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, [device] if device.type == "cuda" else None)

    def shares(self, order):
        """The batches of this process: every count-th key of each batch; where none is left for it, the first key."""
        for batch in order:
            yield batch[self.rank :: self.count] or batch[:1]

    def total(self, number):
        """The sum of a tensor over the processes."""
        if self.count > 1:
            number = number.clone()
            distributed.all_reduce(number)
        return number

    def gather(self, numbers, device):
        """A few numbers of each process: (count, len(numbers)) float64 tensor on the CPU."""
        mine = torch.tensor([numbers], dtype=torch.float64)
        if self.count == 1:
            return mine
        mine = mine.to(device)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        distributed.all_gather(parts, mine)
        return torch.cat(parts).cpu()

    def agree(self, value):
        """What the first process has for value."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values, 0)
        return values[0]

    @contextlib.contextmanager
    def first_alone(self):
        """The first process runs the block before the others do."""
        if self.rank:
            distributed.barrier()
        yield
        if self.count > 1 and not self.rank:
            distributed.barrier()


@contextlib.contextmanager
def quiet():
    """Nothing is printed in the block, except through an exception."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


INTERRUPTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupts:
    """Notes Ctrl-C, SIGTERM and SIGHUP in .received, so that the step can be finished; the same again is at once.

    (torchrun answers Ctrl-C, which reaches all processes, with a SIGTERM to each.) Signals that were ignored, as nohup
    does, stay so.
    """

    def __init__(self, loud=True):
        self.received, self.loud = 0, loud

    def __enter__(self):
        numbers = [number for number in INTERRUPTS if signal.getsignal(number) != signal.SIG_IGN]
        self.previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number, frame):
        if self.received == number:
            raise KeyboardInterrupt
        if not self.received and self.loud:  # print is not for signal handlers
            os.write(2, b"\nStopping after this step; again: at once, without saving.\n")
        self.received = self.received or number

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def start_worker(worker=None):
    """Called first in worker processes: they leave signals to the process that started them, and end when it does."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()


def _end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # killed: nobody would ever tell this process to end
