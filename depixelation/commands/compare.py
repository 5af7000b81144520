"""--compare: the logs of several runs in one figure, a panel for the loss and for each score."""

import contextlib
import sys

from depixelation.commands import Command
from depixelation.engine.outputs import check_outputs
from depixelation.engine.tables import read_log
from depixelation.figures.curves import Panel, plot_curves
from utils import UserError, display_path, read_config_file

LABELS = {"train_loss": "training loss", "score": "score, grey levels of 255", "accuracy": "accuracy, per cent"}
LABELS |= {"mae": "MAE", "psnr": "PSNR, dB", "l1": "L1", "psnr_y": "PSNR on Y, dB", "f1": "F1"}
LABELS |= {"found": "share of areas found", "false": "false areas a picture", "size_error": "error of block sizes"}


def compare(task, options, names):
    """Draw the logs of several runs of a task into one figure, a panel for the loss and for each score."""
    config = task.config
    picture = config.file("losses", "_compared.png")
    check_outputs([(picture, "picture")])
    logs = {name: read_log(config.file("losses", ".csv", name)) for name in names}
    sources = {name: trained_on(config, name) for name in names}
    if len(set(filter(None, sources.values()))) > 1:
        seen = ", ".join(f"{name}: {source}" for name, source in sources.items() if source)
        print(f"warning: these runs saw different images, so their scores cannot be compared ({seen})", file=sys.stderr)
    panels = []
    columns = task.curves or ("train_loss", *task.scores)
    for column in columns:
        missing = next((name for name, rows in logs.items() if column not in rows[0]), None)
        if missing:
            raise UserError(
                f"{config.file('losses', '.csv', missing)}: has no column {column}; is it of --task {config.task}?"
            )
        curves = {name: ([row["epoch"] for row in rows], [row[column] for row in rows]) for name, rows in logs.items()}
        panels.append(Panel(LABELS.get(column, column), curves, {"yscale": "log"} if column == "train_loss" else {}))
    plot_curves(panels, picture)
    width = max(map(len, names))
    print(f"{'':{width}}  minutes" + "".join(f"{column:>12}" for column in columns))
    for name, rows in logs.items():
        best = (max if task.higher_is_better else min)(rows, key=lambda row: row[task.scores[0]])
        cells = "".join(f"{best[column]:12.4g}" for column in columns)
        print(f"{name:{width}} {rows[-1]['minutes']:8.1f}{cells}")
    print(f"Each at its best {task.scores[0]}. Curves: {display_path(picture)}")
    return 0


def trained_on(config, name):
    """The images that a run was trained on, from its config beside the model or the log. None without one."""
    for folder in ("models", "losses"):
        with contextlib.suppress(UserError):
            images = str(read_config_file(config.file(folder, ".json", name)).get("images"))
            return "drawn images" if images == "synthetic" else images
    return None


COMMAND = Command(
    "compare",
    compare,
    "draw the logs of several runs into one figure",
    "+",
    "NAME",
    example="python main.py --compare mine default",
)
