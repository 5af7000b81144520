"""--score: the score of a challenge file against targets, as the challenge's server computes it."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib

import numpy as np

from depixelation.commands import Command
from depixelation.engine.leaderboard import LEADERBOARD_2023, place_in_2023, points
from depixelation.engine.measuring import confidence_interval
from submission_serialization import deserialize
from utils import UserError, open_plain

MAX_SUBMISSION_BYTES = 2**28
MAX_ARRAYS = 10**6  # which take far more memory than their bytes in a file
AT_ONCE = 2**20  # pixels


def read_submission(path):
    """The arrays of a submission file, which may be compressed (zip, gzip, bz2, xz). Raises UserError."""
    try:
        with open_plain(path) as file:
            opened = file
            start = file.read(6)
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                archive = zipfile.ZipFile(file)
                members = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
                if len(members) != 1:
                    raise ValueError(f"holds {len(members)} files, but must hold one")
                opened = archive.open(members[0])
            else:
                for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma)):
                    if start.startswith(magic):
                        opened = module.open(file)
            data = opened.read(MAX_SUBMISSION_BYTES + 1)
        if len(data) > MAX_SUBMISSION_BYTES:
            raise ValueError(f"is larger than {MAX_SUBMISSION_BYTES >> 20} MiB")
        return deserialize(io.BytesIO(data), MAX_ARRAYS)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; name a submission file") from None
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: no submission file: {error}") from None


def root_mean_square(a, b):
    """The root of the mean squared difference of two (N,) uint8 arrays."""
    parts = (slice(start, start + AT_ONCE) for start in range(0, len(a), AT_ONCE))
    return np.sqrt(sum(np.sum((a[part].astype(np.float64) - b[part]) ** 2) for part in parts) / len(a))


def score_submission(task, options, paths):
    """Print the score of a submission against targets, a file of the same form, as the challenge's server does."""
    submission, targets = paths
    predictions, truth = read_submission(submission), read_submission(targets)
    if len(predictions) != len(truth):
        raise UserError(f"{submission}: has {len(predictions)} arrays, but {targets} has {len(truth)}")
    errors = []
    for i, (a, b) in enumerate(zip(predictions, truth)):
        if len(a) != len(b):
            raise UserError(f"{submission}: array {i} has {len(a)} pixels, but that of {targets} has {len(b)}")
        errors.append(root_mean_square(a, b))
    low, high = confidence_interval(np.array(errors))
    print(f"score {np.mean(errors):.6f} on {len(errors):,} images (95 % interval by image {low:.3f} to {high:.3f})")
    score, identity, basic = np.mean(errors), LEADERBOARD_2023["IdentityModel"], LEADERBOARD_2023["BasicCNN"]
    place, worth = place_in_2023(score, identity), points(score, identity, basic)
    print(f"If these images are as hard as those of 2023: place {place} of 204, {worth:.0f} points")
    return 0


COMMAND = Command(
    "score",
    score_submission,
    "print the score of a challenge file; both may be compressed",
    2,
    ("SUBMISSION", "TARGETS"),
    tasks=("depixelation",),
    example="python main.py --score submission.bin rehearsal/targets.bin",
)
