"""--evaluate: tables and pictures of what several models score on samples with truth."""

import glob

import numpy as np

from depixelation.commands import Command
from depixelation.commands.blending import blend_of, measured_refiner, refiner_record
from depixelation.engine.measuring import confidence_interval
from depixelation.engine.models import Model, load_models
from depixelation.engine.outputs import check_outputs
from depixelation.engine.predictor import Predictor, RealismBlend
from depixelation.engine.realism import print_realism
from depixelation.engine.tables import write_table
from depixelation.figures.restoration import plot_tradeoff, possible_sheet
from depixelation.figures.sheets import plot_sheet
from depixelation.images.holdout import group_numbers
from utils import display_path


def evaluate(task, options, paths):
    """Print, write and draw what several models score on samples with truth."""
    config = task.config
    table, sheet = config.file("losses", "_evaluation.csv"), options.sheet or _figure(config, "_samples")
    drawn = glob.glob(glob.escape(config.file("losses", "_evaluation")) + "*.png")
    pictures = {*drawn, _figure(config, ""), sheet}
    outputs, read = [(table, "log"), *((path, "picture") for path in sorted(pictures))], [*paths, config.images]
    check_outputs(outputs, read)
    models, device, precision = load_models(task, options, paths)
    task = task.as_measured(models, options)
    baselines = task.baselines()
    for model in models:
        if model.name in baselines:  # a baseline may depend on the data
            model.predictor = Predictor(baselines[model.name], device, precision)
    realism = bool(getattr(options, "realism", 0))
    refiner = measured_refiner(task, options) if realism else None
    asked_for, models = len(models), task.compared(models, device, precision)  # a reference was trained, too
    dataset, source = task.evaluation_set(models + ([refiner_record(refiner)] if refiner else []), options)
    if refiner:
        blend = blend_of(task, models[0].predictor, options)
        models.insert(asked_for, Model(f"{models[0].name}, R = {options.realism:g}", blend))
    measured = task.measure([model.predictor for model in models], dataset, keep_outputs=realism)
    print(f"\nOn {source}.")
    photos = np.arange(len(dataset)) % len(getattr(dataset, "indices", dataset))  # samples may take photos in turn
    if hasattr(dataset, "names") and config.images != "synthetic":  # photos of one folder are alike
        photos = group_numbers(dataset.names)[photos]
    print_scores(task, models, measured, photos)
    print_differences(task, models, measured, photos)
    means = {score: values.mean(axis=1).tolist() for score, values in measured.figures.items()}
    rows = [{"depixelation_model": m.name, **{s: means[s][i] for s in means}} for i, m in enumerate(models)]
    check_outputs(outputs, read)  # again: some may have appeared meanwhile
    write_table(rows, table)
    figures = task.report(models, measured)
    written = []
    for suffix, draw in figures.items():
        written.append(_figure(config, suffix))
        draw(written[-1])
    if realism:
        written += report_realism(config, options, models, *measured.outputs)
    plot_sheet(task.sample_sheet(measured.sample), sheet, heading=models[0].name)
    print(f"\nTable: {display_path(table)}; pictures: {', '.join(map(display_path, [*written, sheet]))}")
    return 0


def _figure(config, suffix):
    return config.file("losses", f"_evaluation{suffix}.png")


def report_realism(config, options, models, pixelated_images, known_arrays, images, *predictions):
    """Print a table of how real the models' predictions look, and draw it. Returns the pictures' paths."""
    names = [model.name for model in models]
    print_realism(names, pixelated_images, known_arrays, images, *predictions)
    if pixelated_images is None:  # the pictures below show rectangles
        return []
    blends = [model for model in models if isinstance(model.predictor, RealismBlend)]
    adversarial = [model for model in models[1:] if model.trained_with and model.trained_with.adversarial]
    ends = [(model.name, predictions[models.index(model)]) for model in blends + adversarial]
    tradeoff, sheet = _figure(config, "_tradeoff"), _figure(config, "_realism")
    if ends:
        plot_tradeoff((names[0], predictions[0]), ends, images, known_arrays, tradeoff)
    if blends:
        shown = [maps[:: max(1, len(images) // 8)][:8] for maps in (pixelated_images, known_arrays, images)]
        plot_sheet(possible_sheet(blends[0].predictor, *shown, options.samples or 3), sheet)
    return [tradeoff] * bool(ends) + [sheet] * bool(blends)


def print_scores(task, models, measured, photos):
    """Print a row per model: mean scores, the first one's interval, the task's own columns, speed."""
    width = max(len(model.name) for model in models)
    first, *others = measured.figures
    extra = task.columns(models, measured)
    head = f"{first:>6}   95 % interval  " + "".join(f"{name:>9}" for name in others)
    head += "".join(f"  {name:>7}" for name in extra)
    decimals = task.decimals
    print(f"{'':{width}} {head}  images/s")
    for i, model in enumerate(models):
        values = measured.figures[first][i]
        low, high = confidence_interval(values, photos)
        cells = [f"{measured.figures[name][i].mean():9.{decimals}f}" for name in others]
        cells += [f"  {column[i]:>{max(7, len(name))}}" for name, column in extra.items()]
        rate = len(values) / max(measured.seconds[i], 1e-9)
        figures = f"{values.mean():6.{decimals}f} {low:6.{decimals}f} to {high:6.{decimals}f}"
        print(f"{model.name:{width}} {figures}  {''.join(cells)} {rate:8.{0 if rate > 20 else 1}f}")


def print_differences(task, models, measured, photos):
    """Print how each trained model differs from the first in the deciding score, sample by sample."""
    trained = [i for i, model in enumerate(models) if model.trained_with]
    if len(trained) < 2:
        return
    values = measured.figures[task.scores[0]]
    print(f"\n{task.scores[0]} less that of {models[trained[0]].name}, paired by sample, with its 95 % interval:")
    for i in trained[1:]:
        difference = values[i] - values[trained[0]]
        low, high = confidence_interval(difference, photos)
        figures = (f"{value:+.{task.decimals}f}" for value in (difference.mean(), low, high))
        print("{}  {} ({} to {})".format(models[i].name, *figures))


COMMAND = Command(
    "evaluate",
    evaluate,
    "measure models on images with truth, compare each with the first, and plot the results",
    "*",
    "MODEL",
    lambda task_type: task_type.EvaluateOptions,
    example="python main.py --evaluate models/photos.pt models/mine.pt --images training.zip",
)
