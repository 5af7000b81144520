"""Figures of restored images."""

import pytest
import torch

from depixelation.figures import restoration


def test_the_line_of_realism_begins_at_the_accurate_model(monkeypatch):
    drawn = []
    monkeypatch.setattr(restoration, "save_figure", lambda figure, path: drawn.append(figure.axes[0]))
    monkeypatch.setattr(restoration, "two_sample_accuracy", lambda *_: (0.5,))
    images, known = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    restoration.plot_tradeoff(("accurate", images + 1), [("real", images + 9)], images, known, "x.png")
    line, texts = drawn[0].lines[0], {text.get_text().strip(): text.xy for text in drawn[0].texts}
    assert list(line.get_xdata()) == pytest.approx([1, 3, 5, 7, 9])
    assert (texts["R = 0"][0], texts["R = 1"][0]) == pytest.approx((1, 9))
