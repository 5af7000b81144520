"""Guards outputs: the program never overwrites a file that it did not make, nor one that it reads.

Before it starts to work, every command passes the files that it will write to `check_outputs`. The program's files
carry a sign of their kind; if a format has no room for one, another file holds the digest.
"""

import hashlib
import os
import sys

from utils import UserError, display_path


def sign(kind):
    """The mark in this program's pictures, archives and test sets, in a comment or the like."""
    return f"{kind} made by Depixelation's main.py"


SIGNS = {kind: (sign(kind).encode(),) for kind in ("picture", "archive", "test set", "page")}
CONFIG_KEYS = (b"network_options", b"validation_fraction", b"synthetic_images", b"ema_decay")  # our files have all
SIGNS["log"] = (b"epoch,step,samples,minutes,train_loss", b"depixelation_model,")  # first words of logs and tables
RUN_FILES = (("models", ".pt", "model"), ("models", ".last.pt", "model"), ("models", ".json", "config"))
RUN_FILES += (("losses", ".csv", "log"), ("losses", ".png", "picture"), ("losses", "_samples.png", "picture"))


def file_digest(path):
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def written_by_us(path, kind):
    """Whether this program wrote the file, as one of this kind.

    kind: a key of SIGNS, or "model" or "config", which hold all of CONFIG_KEYS. For a file without room for a sign,
    kind is the path of the file that would hold its digest.
    """
    signs, start = SIGNS.get(kind), path
    if signs is None and kind not in ("model", "config"):
        signs, start = (file_digest(path).encode(),), kind
        if not os.path.isfile(kind):
            return False
    with open(start, "rb") as file:
        head = file.read(2**22)  # before the sign there may be a colour profile
        file.seek(max(0, os.path.getsize(start) - 2**12))
        tail = file.read()
    if signs is None:
        begins = head.startswith(b"PK") if kind == "model" else head.lstrip().startswith(b"{")
        return begins and all(key in head or key in tail for key in CONFIG_KEYS)
    return head.startswith(signs) if kind == "log" else any(each in head or each in tail for each in signs)


def check_outputs(outputs, inputs=()):
    """Raise UserError, before any work, if an output would cost the user a file or cannot be written.

    outputs: (path, kind) of each file to be written, kind as for `written_by_us`. inputs: paths of files and folders
    that are read; None and words that are not paths are ignored.
    """
    taken, sources = set(), {os.path.realpath(source) for source in filter(None, inputs)}
    folders = [source + os.sep for source in sources if os.path.isdir(source)]
    for path, kind in outputs:
        real = os.path.realpath(path)
        name = real.lower() if sys.platform in ("win32", "darwin") else real  # where case rarely matters
        if name in taken:
            raise UserError(f"{display_path(path)}: two files would be written under this name; choose another")
        taken.add(name)
        if real in sources:
            raise UserError(f"{display_path(path)}: would be read and replaced; give what is written another name")
        within = next((folder for folder in folders if kind == "picture" and real.startswith(folder)), None)
        if within:
            raise UserError(
                f"output_dir: {display_path(path)} would become one of the photos in {display_path(within)}; "
                "choose another folder"
            )
        if os.path.isdir(real):
            raise UserError(f"{display_path(path)}: is a folder; name a file")
        if os.path.lexists(real) and not os.path.isfile(real):
            raise UserError(f"{display_path(path)}: is no plain file; name another")
        if os.path.exists(real) and not written_by_us(real, kind):
            raise UserError(
                f"{display_path(path)}: is not replaced, as nothing shows that this program made it; "
                "move it or write elsewhere"
            )
        folder = os.path.dirname(real)
        while not os.path.lexists(folder) and folder != os.path.dirname(folder):  # skip the folders still to be made
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"{display_path(path)}: cannot be written, as {display_path(folder)} is no folder to write in"
            )
