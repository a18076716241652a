"""Figures show the numbers they should, and no text of theirs is cut off."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.text import Text

from cxr_mlflow.evaluation import plots
from cxr_mlflow.evaluation.metrics import confusion, evaluate

CLASSES = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
LONG = ["Pneumothorax_with_a_long_class_name", "Pseudopneumoencephalography",
        "Supercalifragilisticexpialidocious", "Mass"]  # fmt: skip
SUBTITLE = (
    "test, n = 200, data demo (synthetic), weights=random (ImageNet unreachable), not controlled, "
    "3 damaged files skipped"
)


def predictions(num_classes=4, num_images=200):
    generator = np.random.default_rng(0)
    y_true = generator.integers(0, num_classes, num_images)
    logits = generator.normal(size=(num_images, num_classes)) + 2 * np.eye(num_classes)[y_true]
    exp = np.exp(logits)
    return y_true, exp / exp.sum(axis=1, keepdims=True)


def history(num_epochs=5):
    epochs = np.arange(1, num_epochs + 1)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "train/loss": 1 / epochs,
            "val/loss": 1.1 / epochs,
            "val/f1_macro": 1 - 0.5 / epochs,
            "val/accuracy": 1 - 0.4 / epochs,
            "train/lr": 1e-3 / epochs,
        }
    )


def error_rows(classes, num_rows):
    return pd.DataFrame(
        {
            "image_id": [
                f"{classes[0]}/{'a_long_file_name_' * (i + 1)}{i}" for i in range(num_rows)
            ],
            "true": [classes[0]] * num_rows,
            "predicted": [classes[2]] * num_rows,
            "confidence": np.linspace(0.999, 0.5, num_rows),
        }
    )


def noise_images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 16, 16), dtype=np.uint8)


def all_figures(classes):
    y_true, probabilities = predictions(len(classes))
    matrix = confusion(y_true, probabilities.argmax(axis=1), len(classes))
    counts = pd.DataFrame([[2896, 890, 5076, 1050]] * 3, ["train", "val", "test"], classes)
    draws = pd.DataFrame([[700, 710, 690, 700]] * 12, columns=classes)
    draws.insert(0, "epoch", range(1, 13))
    available = dict(zip(classes, [2896, 890, 5076, 1050], strict=True))
    return {
        "counts": plots.plot_confusion(matrix, classes, normalize=False, subtitle=SUBTITLE),
        "rates": plots.plot_confusion(matrix, classes, normalize=True, subtitle=SUBTITLE),
        "roc": plots.plot_roc(y_true, probabilities, classes, subtitle=SUBTITLE),
        "pr": plots.plot_precision_recall(y_true, probabilities, classes, subtitle=SUBTITLE),
        "history": plots.plot_history(history(), best_epoch=4, subtitle=SUBTITLE),
        "one_epoch": plots.plot_history(history(1), best_epoch=1, subtitle=SUBTITLE),
        "classes": plots.plot_class_distribution(counts, subtitle=SUBTITLE),
        "draws": plots.plot_draws(draws, classes, available=available, subtitle=SUBTITLE),
        "few_draws": plots.plot_draws(draws[:2], classes, subtitle=SUBTITLE),
        "worst": plots.plot_worst_errors(
            noise_images(7), error_rows(classes, 7), subtitle=SUBTITLE
        ),
        "no_error": plots.plot_worst_errors(
            noise_images(0), error_rows(classes, 0), subtitle=SUBTITLE
        ),
        "samples": plots.plot_samples(noise_images(4, 5), classes, subtitle=SUBTITLE),
    }


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def drawn_texts(figure):
    """Texts on the page; matplotlib also keeps labels of ticks outside the axes."""
    hidden = set()
    for axis in (axis for axes in figure.findobj(Axes) for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [t for t in axis.get_major_ticks() if not low <= t.get_loc() <= high]
        hidden |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in found if text not in hidden and text.get_text().strip()]


@pytest.mark.parametrize("classes", [CLASSES, LONG], ids=["usual", "long_names"])
def test_no_text_is_cut_or_printed_over_another(classes):
    for name, figure in all_figures(classes).items():
        figure.canvas.draw()
        page = figure.bbox.padded(1)
        boxes = {text: text.get_window_extent() for text in drawn_texts(figure)}
        for text, box in boxes.items():
            assert box.x0 >= page.x0, (name, text)
            assert box.x1 <= page.x1, (name, text)
            assert box.y0 >= page.y0, (name, text)
            assert box.y1 <= page.y1, (name, text)
        level = [  # the headline holds room for the line below it, so it covers that one
            (text, box.padded(-1))
            for text, box in boxes.items()
            if text.get_rotation() in (0, 90) and text is not figure._suptitle
        ]
        for (one, box), (other, other_box) in itertools.combinations(level, 2):
            assert not box.overlaps(other_box), (name, one, other)


def test_every_figure_says_what_it_was_computed_on():
    for name, figure in all_figures(CLASSES).items():
        assert SUBTITLE in " ".join(texts(figure)).replace("\n", " "), name


def test_confusion_shows_counts_or_shares_with_counts():
    matrix = np.array([[3, 1], [0, 0]])
    counts = texts(plots.plot_confusion(matrix, ["A", "B"], normalize=False))
    assert {"3", "1", "0"} <= set(counts)
    rates = texts(plots.plot_confusion(matrix, ["A", "B"], normalize=True))
    assert {"75.0%", "n = 3", "25.0%", "n = 1"} <= set(rates)
    assert rates.count("no image") == 2
    assert "A\nn = 4" in rates
    with pytest.raises(ValueError, match="shape"):
        plots.plot_confusion(matrix, ["A", "B", "C"], normalize=True)


def test_legends_tell_the_areas_that_the_metrics_tell():
    y_true, probabilities = predictions()
    scores = evaluate(y_true, probabilities, CLASSES)
    roc = texts(plots.plot_roc(y_true, probabilities, CLASSES))
    pr = texts(plots.plot_precision_recall(y_true, probabilities, CLASSES))
    assert any(f"COVID: area {scores['roc_auc/covid']:.3f}" in text for text in roc)
    assert any(f"Normal: AP {scores['average_precision/normal']:.3f}" in text for text in pr)


def test_a_class_without_images_is_named_as_not_measured():
    y_true, probabilities = predictions()
    kept = y_true != 1
    for plot in (plots.plot_roc, plots.plot_precision_recall):
        assert "Lung_Opacity: not measured" in texts(
            plot(y_true[kept], probabilities[kept], CLASSES)
        )


def test_a_class_has_one_colour_in_all_figures():
    figures = all_figures(CLASSES)
    colors = []
    for name in ("roc", "pr"):
        colors.append([line.get_color() for line in figures[name].axes[0].lines if "n = " in
                       line.get_label()])  # fmt: skip
    for name in ("classes", "draws"):
        colors.append([to_hex(bars.patches[0].get_facecolor())
                       for bars in figures[name].axes[0].containers])  # fmt: skip
    assert all(one == colors[0] for one in colors)
    assert len(set(colors[0])) == len(CLASSES)


def test_history_marks_the_best_epoch_and_leaves_out_what_is_not_there():
    assert "best epoch 4" in texts(plots.plot_history(history(), best_epoch=4))
    losses = plots.plot_history(history()[["epoch", "train/loss"]])
    assert [axes.get_title(loc="left") for axes in losses.axes] == ["Loss"]
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.plot_history(pd.DataFrame({"epoch": [1], "speed": [3.0]}))
    with pytest.raises(ValueError, match="'epoch'"):
        plots.plot_history(pd.DataFrame({"train/loss": [1.0]}))


def test_sheets_tell_true_and_predicted_class_and_refuse_a_wrong_number_of_images():
    rows = error_rows(CLASSES, 2)
    shown = texts(plots.plot_worst_errors(noise_images(2), rows))
    assert "true COVID\npredicted Normal, 99.9%" in shown
    assert "No image was misjudged." in texts(
        plots.plot_worst_errors(noise_images(0), error_rows(CLASSES, 0))
    )
    with pytest.raises(ValueError, match="3 images for 2 rows"):
        plots.plot_worst_errors(noise_images(3), rows)
    with pytest.raises(ValueError, match="1 row titles"):
        plots.plot_samples(noise_images(2, 3), ["COVID"])
    with pytest.raises(ValueError, match="draws lacks"):
        plots.plot_draws(pd.DataFrame({"epoch": [1], "A": [3]}), ["A", "B"])


def test_the_room_draws_without_pyplot_torch_and_mlflow():
    code = (
        "import sys, cxr_mlflow.evaluation.plots, cxr_mlflow.evaluation.report;"
        "print([m for m in ('matplotlib.pyplot', 'torch', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
