"""Curves of runs."""

from typing import NamedTuple

from depixelation.figures.sheets import new_figure, save_figure


class Panel(NamedTuple):
    """One diagram of a figure."""

    label: str  # of the y axis
    curves: dict  # {label of the curve: (x, y)}
    options: dict = {}  # keywords for Axes.set
    x_label: str = "epoch"
    lines: dict = {}  # {label: y} of horizontal lines, for reference


def plot_curves(panels, path, title=""):
    """Draw panels side by side, as a PNG."""
    figure = new_figure(figsize=(max(8, 5.5 * len(panels)), 4.5), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=9)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for i, (name, (x, y)) in enumerate(panel.curves.items()):
            style, shade = ("-", "--", ":", "-.")[i % 4], str(0.6 * i / len(panel.curves))
            axes.plot(x, y, style, marker="osv^Dx"[i % 6], markersize=3, color=shade, label=name)
        for i, (name, value) in enumerate(panel.lines.items()):
            axes.axhline(value, linestyle=("-", "-.", ":")[i % 3], color="0.3", linewidth=1)
            place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "fontsize": 8}
            axes.annotate(f"{name}: {value:.2f}", (1, value), **place)
        axes.set(xlabel=panel.x_label, ylabel=panel.label, **panel.options)
        if panel.options.get("yscale") == "log":
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(color="0.9")
        axes.legend(fontsize=8)
    save_figure(figure, path)


def column_panels(rows, columns):
    """A Panel for each column of a log, over epochs. rows: the log. columns: (name, label); the first is a loss."""
    epochs = [row["epoch"] for row in rows]
    panels = [Panel(label, {label: (epochs, [row[name] for row in rows])}) for name, label in columns]
    return [panels[0]._replace(options={"yscale": "log"}), *panels[1:]]
