"""The confusion matrix."""

from depixelation.figures import classes


def test_rows_are_true_classes_and_columns_those_that_were_given(monkeypatch):
    drawn = []
    monkeypatch.setattr(classes, "save_figure", lambda figure, path: drawn.append(figure.axes[0]))
    classes.plot_confusion([0, 0, 0, 1], [1, 1, 0, 1], ["a", "b"], "", "x.png")
    (axes,) = drawn
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "1",
        (1, 0): "2",
        (0, 1): "0",
        (1, 1): "1",
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("label given", "true class")
