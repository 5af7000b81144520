"""--make_test_set: a test pickle in the challenge's form, and its targets, to rehearse the hand-in."""

import os
import pickle
import shlex

import numpy as np

from datasets import CachedPixelationDataset
from depixelation.commands import Command
from depixelation.engine.models import Model, chosen_model, training_record
from depixelation.engine.options import EvaluateOptions
from depixelation.engine.outputs import check_outputs, file_digest, sign
from depixelation.images.holdout import images_with_truth
from submission_serialization import serialize
from utils import atomic_write, config_from_dict, display_path, load_checkpoint


def make_test_set(task, options, paths):
    """Write FOLDER/test_set.pkl in the challenge's form and its FOLDER/targets.bin, for a rehearsal of the hand-in."""
    config, folder = task.config, paths[0]
    test_set, target_file = os.path.join(folder, "test_set.pkl"), os.path.join(folder, "targets.bin")
    check_outputs([(test_set, "test set"), (target_file, test_set)], [config.images])
    models = []
    for path in dict.fromkeys((chosen_model(task, options), config.file("models", ".pt"), task.shipped)):
        if os.path.exists(path):
            saved = load_checkpoint(path, "name a folder without it")
            trained_with = config_from_dict(type(config), saved["config"], path)
            models.append(Model(display_path(path), None, trained_with, training_record(saved)))
    cache, indices, source = images_with_truth(config, options, models)
    dataset = CachedPixelationDataset(cache, indices, seed=0)
    pixelated_images, known_arrays, targets, _ = zip(*(dataset[i] for i in range(len(dataset))))
    serialize([target.ravel() for target in targets], target_file)
    data = {"pixelated_images": pixelated_images, "known_arrays": known_arrays}
    made = {"made_by": sign("test set"), "targets": file_digest(target_file)}
    with atomic_write(test_set) as file:  # asarray: the cache's arrays are np.memmap, not np.ndarray
        pickle.dump({**made, **{key: tuple(map(np.asarray, arrays)) for key, arrays in data.items()}}, file, 4)
    submission = os.path.join(folder, "submission.bin")
    paths = [shlex.quote(display_path(path)) for path in (test_set, submission, target_file)]
    chosen = [f"--{key} {shlex.quote(getattr(options, key))} " for key in ("name", "model") if getattr(options, key)]
    print(
        f"Wrote {display_path(test_set)} and {display_path(target_file)}: {source}. The rehearsal:\n"
        f"python main.py --predict {''.join(chosen)}--test_set {paths[0]} --submission {paths[1]}\n"
        f"python main.py --score {paths[1]} {paths[2]}"
    )
    return 0


COMMAND = Command(
    "make_test_set",
    make_test_set,
    "write a test pickle and its targets from images, to rehearse the hand-in",
    1,
    "FOLDER",
    EvaluateOptions,
    ("depixelation",),
    "python main.py --make_test_set rehearsal --images training.zip --name mine",
)
