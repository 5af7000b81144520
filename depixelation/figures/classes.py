"""The confusion matrix."""

import numpy as np

from depixelation.figures.sheets import new_figure, save_figure


def plot_confusion(labels, predictions, names, title, path):
    """Draw the confusion matrix as a PNG. labels, predictions: (N,) ints."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure = new_figure(figsize=(8, 7.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares**0.5, cmap="Greys", vmin=0, vmax=1)  # the root makes rare mistakes visible
    ticks = range(len(names))
    for i in ticks:
        for j in ticks:
            axes.text(
                j, i, f"{counts[i, j]}", ha="center", va="center", color=("black", "white")[int(shares[i, j] > 0.3)]
            )
    axes.set(xticks=ticks, yticks=ticks, yticklabels=names, xlabel="label given", ylabel="true class", title=title)
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    save_figure(figure, path)
