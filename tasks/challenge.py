"""The challenge's hand-in: its file, a rehearsal with targets, the score, and the archive for the course's platform."""

import bz2
import glob
import gzip
import io
import itertools
import lzma
import os
import pickle
import posixpath
import re
import shlex
import time
import zipfile
import zlib

import numpy as np
import torch
from tqdm import tqdm

from datasets import CachedPixelationDataset
from submission_serialization import deserialize, load_test_set, serialize
from tasks import Action
from tasks.evaluation import Model, chosen_model, confidence_interval, load_models, mean_of, training_record
from tasks.images import images_with_truth
from tasks.outputs import check_outputs, file_digest, sign
from tasks.refining import plot_possible, refined
from tasks.restoration import BATCH, plot_samples, restore
from utils import ROOT, UserError, atomic_write, config_from_dict, load_checkpoint, show

MAX_SUBMISSION_BYTES = 2**28


def read_submission(path):
    """The arrays of a submission file, which may be compressed (zip, gzip, bz2, xz). Raises UserError."""
    try:
        with open(path, "rb") as file:
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
        return deserialize(io.BytesIO(data))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; name a submission file") from None
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: no submission file: {error}") from None


def score_submission(task, given, paths):
    """Print the score of a submission against targets, a file of the same form, as the challenge's server does."""
    submission, targets = paths
    predictions, truth = read_submission(submission), read_submission(targets)
    if len(predictions) != len(truth):
        raise UserError(f"{submission}: has {len(predictions)} arrays, but {targets} has {len(truth)}")
    errors = []
    for i, (a, b) in enumerate(zip(predictions, truth)):
        if len(a) != len(b):
            raise UserError(f"{submission}: array {i} has {len(a)} pixels, but that of {targets} has {len(b)}")
        errors.append(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))
    low, high = confidence_interval(np.array(errors))
    print(f"score {np.mean(errors):.6f} on {len(errors):,} images (95 % interval {low:.3f} to {high:.3f})")
    return 0


def restore_all(predict, pixelated_images, known_arrays, device, precision):
    """Predictions, a list of (1, H, W) uint8 arrays, for lists of arrays of any sizes, with a progress bar."""
    predictions = []
    with tqdm(total=len(pixelated_images), desc="restoring", unit=" images") as bar:
        for _, group in itertools.groupby(zip(pixelated_images, known_arrays), lambda pair: pair[0].shape):
            group = list(group)  # neighbours of one size
            for first in range(0, len(group), BATCH):
                batch = [torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*group[first : first + BATCH])]
                predictions.extend(restore(predict, *batch, precision).cpu().numpy())
                bar.update(len(batch[0]))
    return predictions


def predict(task, given, paths):
    """Write the challenge file for config.test_set, with the mean of several models where there are some."""
    config = task.config
    picture, possible = (os.path.splitext(config.submission)[0] + end for end in (".png", "_samples.png"))
    read = [*(paths or [chosen_model(task, given)]), config.test_set]
    outputs = [(config.submission, picture), (picture, "picture"), (possible, "picture")]
    check_outputs(outputs[: 3 if config.samples else 2], read)
    models, device, precision = load_models(task, given, paths)
    predictor = models[0].predict if len(models) == 1 else mean_of([model.predict for model in models])
    predictor = refined(task, predictor, device)
    pixelated_images, known_arrays = load_test_set(config.test_set)
    started = time.perf_counter()
    predictions = restore_all(predictor, pixelated_images, known_arrays, device, precision)
    seconds = max(time.perf_counter() - started, 1e-9)
    for i, (prediction, image, known) in enumerate(zip(predictions, pixelated_images, known_arrays, strict=True)):
        if prediction.dtype != np.uint8 or not np.array_equal(prediction[known], image[known]):  # of another image?
            raise UserError(f"test_set: the prediction for image {i} does not fit it; nothing was written")
    submission = [prediction[~known] for prediction, known in zip(predictions, known_arrays)]
    serialize(submission, config.submission)
    written = deserialize(config.submission)
    if len(written) != len(submission) or not all(map(np.array_equal, written, submission)):
        raise UserError(
            f"{config.submission}: what was read back is not what was written; check the disk and try again"
        )
    shown = [i for i in range(min(8, len(predictions))) if predictions[i].shape == predictions[0].shape]
    images = (pixelated_images, known_arrays, predictions)
    sheet = [torch.from_numpy(np.stack([arrays[i] for i in shown])) for arrays in images]
    plot_samples(*sheet, None, picture, file_digest(config.submission))
    pictures = [picture]
    if config.samples:
        plot_possible(predictor, *sheet[:2], None, config.samples, device, possible)
        pictures.append(possible)
    print(
        f"Wrote {show(config.submission)}: {len(submission):,} images, {os.path.getsize(config.submission):,} bytes, "
        f"read back and checked; {len(submission) / seconds:.0f} images/s.\nThe first restorations: "
        f"{', '.join(map(show, pictures))}"
    )
    return 0


def make_test_set(task, given, paths):
    """Write FOLDER/test_set.pkl in the challenge's form and its FOLDER/targets.bin, for a rehearsal of the hand-in."""
    config, folder = task.config, paths[0]
    test_set, target_file = os.path.join(folder, "test_set.pkl"), os.path.join(folder, "targets.bin")
    check_outputs([(test_set, "test set"), (target_file, test_set)], [config.images])
    models = []
    for path in dict.fromkeys((chosen_model(task, given), config.file("models", ".pt"), task.shipped)):
        if os.path.exists(path):
            saved = load_checkpoint(path, "name a folder without it")
            made = config_from_dict(type(config), saved["config"], path)
            models.append(Model(show(path), None, made, record=training_record(saved)))
    cache, indices, source = images_with_truth(config, given, models)
    dataset = CachedPixelationDataset(cache, indices, seed=0)
    pixelated_images, known_arrays, targets, _ = zip(*(dataset[i] for i in range(len(dataset))))
    serialize([target.ravel() for target in targets], target_file)
    data = {"pixelated_images": pixelated_images, "known_arrays": known_arrays}
    made = {"made_by": sign("test set"), "targets": file_digest(target_file)}
    with atomic_write(test_set) as file:  # asarray: the cache's arrays are of a class of their own, np.memmap
        pickle.dump({**made, **{key: tuple(map(np.asarray, arrays)) for key, arrays in data.items()}}, file, 4)
    submission = os.path.join(folder, "submission.bin")
    paths = [shlex.quote(show(path)) for path in (test_set, submission, target_file)]
    chosen = [f"--{key} {shlex.quote(getattr(config, key))} " for key in ("name", "model") if key in given]
    print(
        f"Wrote {show(test_set)} and {show(target_file)}: {source}. The rehearsal:\n"
        f"python main.py --predict {''.join(chosen)}--test_set {paths[0]} --submission {paths[1]}\n"
        f"python main.py --score {paths[1]} {paths[2]}"
    )
    return 0


# ------------------------------------------------------------------------------------------------ the archive

HAND_IN = (
    "*.py",
    "tasks/*.py",
    "tests/*.py",
    "*.md",
    "models/*.md",
    "losses/*.md",
    "tests/*.md",
    "LICENSE",
    "requirements.txt",
    "config.json",
    ".gitignore",
    ".ruff.toml",
)
HAND_IN += (".ci/run", "losses/scaling.csv")
LARGE_HAND_IN = 20e6  # bytes; course platforms refuse files some way above that


def zip_project(task, given, paths):
    """Write the archive to hand in: source, configuration, documentation, the chosen model and its log, nothing else.

    Its bytes are a function of the files' contents alone.
    """
    path = paths[0] if paths else "depixelation.zip"
    model = chosen_model(task, given)
    load_checkpoint(model, "train one first with python main.py, or name one with --model FILE")
    folder, name = os.path.split(os.path.splitext(os.path.abspath(model))[0])
    files = {}
    for pattern in HAND_IN:
        for file in glob.glob(pattern, root_dir=ROOT, include_hidden=True):
            files[file.replace(os.sep, "/")] = os.path.join(ROOT, file)
    for document in [entry for entry in files if entry.endswith(".md")]:
        with open(files[document], encoding="utf-8") as opened:
            pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", opened.read())
        for picture in (posixpath.normpath(posixpath.join(posixpath.dirname(document), name)) for name in pictures):
            if os.path.isfile(os.path.join(ROOT, picture)):  # not an address on the web
                files[picture] = os.path.join(ROOT, picture)
    losses = os.path.join(os.path.dirname(folder), "losses")
    for kind, start, suffixes in (("models", folder, (".pt", ".json")), ("losses", losses, (".csv", ".png"))):
        for suffix in suffixes:
            if os.path.exists(os.path.join(start, name + suffix)):
                files[f"{kind}/{name}{suffix}"] = os.path.join(start, name + suffix)
    check_outputs([(path, "archive")], files.values())
    with atomic_write(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        zipped.comment = sign("archive").encode()
        for entry, file in sorted(files.items()):
            info = zipfile.ZipInfo(entry)  # its time is 1980-01-01
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            with open(file, "rb") as opened:
                zipped.writestr(info, opened.read())
            print(f"{os.path.getsize(file):>12,} bytes  {entry}")
    size = os.path.getsize(path)
    print(f"Wrote {show(path)}: {len(files)} files, {size:,} bytes.")
    if size > LARGE_HAND_IN:
        print(f"warning: {show(path)} is larger than {LARGE_HAND_IN / 1e6:.0f} MB; ask whether that can be handed in")
    return 0


ACTIONS = {
    "predict": Action(
        "*",
        "MODEL",
        "restore every image of the test pickle and write the challenge file; with several models, their mean",
        predict,
    ),
    "score": Action(
        2, ("SUBMISSION", "TARGETS"), "print the score of a challenge file; both may be compressed", score_submission
    ),
    "make_test_set": Action(
        1, "FOLDER", "write a test pickle and its targets from images, to rehearse the hand-in", make_test_set
    ),
}
