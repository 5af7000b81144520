"""--predict, the challenge: restore every image of the test pickle and write the challenge file."""

import itertools
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from depixelation.commands import Command
from depixelation.commands.blending import blend_of
from depixelation.engine.models import chosen_model, load_models
from depixelation.engine.options import ModelOptions, RealismOptions
from depixelation.engine.outputs import check_outputs, file_digest
from depixelation.engine.predictor import Ensemble
from depixelation.engine.restoration import BATCH, restore
from depixelation.figures.restoration import possible_sheet, restoration_sheet
from depixelation.figures.sheets import plot_sheet
from submission_serialization import deserialize, load_test_set, serialize
from utils import ROOT, UserError, display_path, key


@dataclass(frozen=True)
class PredictOptions(RealismOptions, ModelOptions):
    """Of --predict."""

    test_set: str = key("test_set.pkl", "the challenge's test pickle", path=True)
    submission: str | None = key(None, "the challenge file to write; none: submission_NAME.bin", path=True)


def restore_all(predictor, pixelated_images, known_arrays):
    """Predictions, a list of (1, H, W) uint8 arrays, for lists of arrays of any sizes, with a progress bar."""
    predictions = []
    with tqdm(total=len(pixelated_images), desc="restoring", unit=" images") as bar:
        for _, group in itertools.groupby(zip(pixelated_images, known_arrays), lambda pair: pair[0].shape):
            group = list(group)  # consecutive images of one size
            for first in range(0, len(group), BATCH):
                batch = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*group[first : first + BATCH])]
                predictions.extend(restore(predictor, *batch).numpy())
                bar.update(len(batch[0]))
                if bar.n == len(batch[0]):  # extrapolate from the first batch
                    minutes = predictor.seconds / bar.n * (bar.total - bar.n) / 60
                    if minutes > 1:
                        bar.write(f"This takes about {minutes:.0f} minutes.")
    return predictions


def write_submission(predictions, pixelated_images, known_arrays, path):
    """Write the challenge file, read it back and check it. Raises UserError."""
    for i, (prediction, image, known) in enumerate(zip(predictions, pixelated_images, known_arrays, strict=True)):
        if prediction.dtype != np.uint8 or not np.array_equal(prediction[known], image[known]):  # of the wrong image?
            raise UserError(f"test_set: the prediction for image {i} does not fit it; nothing was written")
    submission = [prediction[~known] for prediction, known in zip(predictions, known_arrays)]
    serialize(submission, path)
    written = deserialize(path)
    if len(written) != len(submission) or not all(map(np.array_equal, written, submission)):
        raise UserError(f"{path}: the file read back differs from what was written; check the disk and try again")


def warn_of_drawn_images(task, models):
    """Warn if a model was trained on drawn images only, while a shipped one was trained on photos."""
    drawn = [model for model in models if model.trained_with and all(e["images"] == "synthetic" for e in model.record)]
    if drawn and task.shipped and os.path.exists(task.shipped):
        print(
            f"warning: {drawn[0].name} was trained on drawn images, not on photos; on the challenge's photos "
            f"--model {display_path(task.shipped)} is better",
            file=sys.stderr,
        )


def outputs_of(submission, options):
    """[(path, kind)] of all that is written, as `check_outputs` wants it."""
    picture, possible = (os.path.splitext(submission)[0] + end for end in (".png", "_samples.png"))
    return [(submission, picture), (picture, "picture"), (possible, "picture")][: 3 if options.samples else 2]


def another_name(submission, options):
    """The path with _2, or the next number for which none of the outputs exists."""
    stem, extension = os.path.splitext(submission)
    paths = (f"{stem}_{number}{extension}" for number in itertools.count(2))
    return next(path for path in paths if not any(os.path.lexists(each) for each, _ in outputs_of(path, options)))


def predict(task, options, paths):
    """Write the challenge file for options.test_set; several models are averaged."""
    read = paths or [chosen_model(task, options)]
    name = os.path.splitext(os.path.basename(read[0]))[0] if len(read) == 1 else "ensemble"
    submission = options.submission or os.path.join(ROOT, f"submission_{name}.bin")
    read = [*read, options.test_set]
    check_outputs(outputs_of(submission, options), read)
    models, _, _ = load_models(task, options, paths)
    warn_of_drawn_images(task, models)
    predictors = [model.predictor for model in models]
    predictor = blend_of(task, predictors[0] if len(models) == 1 else Ensemble(predictors), options)
    pixelated_images, known_arrays = load_test_set(options.test_set)
    started = time.perf_counter()
    predictions = restore_all(predictor, pixelated_images, known_arrays)
    seconds = max(time.perf_counter() - started, 1e-9)
    try:
        check_outputs(outputs_of(submission, options), read)  # again: some may have appeared meanwhile
    except UserError as error:
        submission = another_name(submission, options)
        print(f"warning: {error}; so {display_path(submission)} is written instead", file=sys.stderr)
    write_submission(predictions, pixelated_images, known_arrays, submission)
    shown = [i for i in range(min(8, len(predictions))) if predictions[i].shape == predictions[0].shape]
    images = (pixelated_images, known_arrays, predictions)
    sheet = [torch.from_numpy(np.stack([arrays[i] for i in shown])) for arrays in images]
    _, *pictures = (path for path, _ in outputs_of(submission, options))
    plot_sheet(restoration_sheet(*sheet), pictures[0], file_digest(submission))
    if options.samples:
        plot_sheet(possible_sheet(predictor, *sheet[:2], None, options.samples), pictures[1])
    print(
        f"Wrote {display_path(submission)}: {len(predictions):,} images, "
        f"{os.path.getsize(submission):,} bytes, read back and checked; "
        f"{len(predictions) / seconds:.0f} images/s.\nThe first restorations: {', '.join(map(display_path, pictures))}"
    )
    return 0


COMMAND = Command(
    "predict",
    predict,
    "restore every image of the test pickle and write the challenge file; with several models, their mean",
    "*",
    "MODEL",
    PredictOptions,
    ("depixelation",),
    "python main.py --predict --name mine --test_set test_set.pkl",
)
