"""A comparison is shown with its warnings, its chances and its gaps, in every medium alike."""

from __future__ import annotations

import html.parser
import io
import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from cxr_mlflow.evaluation.comparison import Comparison, Pair, RowScore, TestedRun, compare
from cxr_mlflow.evaluation.comparison_plots import plot_classes, plot_pairs, plot_rows
from cxr_mlflow.evaluation.comparison_report import (
    Missing,
    print_comparison,
    to_html,
    to_markdown,
    to_note,
)
from cxr_mlflow.evaluation.comparison_verdicts import ONE_SEED
from cxr_mlflow.evaluation.intervals import Interval
from cxr_mlflow.evaluation.metrics import class_slugs

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
ROWS = [
    f"{model}, {strategy}{size}"
    for size in ("", ", 112 px")
    for model in ("resnet18", "cnn")
    for strategy in ("none", "weighted", "oversample")
]
LONG_ROWS = [
    "resnet18 with a very long name, oversample, 224 px, lungs only, no augmentation",
    "cnn_" + "x" * 60,
    "c",
]
LONG_CLASSES = ("Pneumothorax_with_a_long_class_name", "Supercalifragilisticexpialidocious",
                "Mass", "A", "B", "C")  # fmt: skip
SUBTITLE = "1,984 test images of the full pack"
TITLE = "Strategies against class imbalance"
ABOUT = {"data": "full pack, digest 3f2a", "settings": "10 epochs, lr 0.001", "code": "33c4728"}
SHARED = ("synthetic data", "not controlled")
MISSING = [
    Missing("resnet18, weighted", "7", "failed", "MemoryError: 3.1 GB"),
    Missing("cnn, focal", "0", "not run yet", "left out by --only"),
]


def made(
    rows=4, seeds=3, *, single=(), own=None, shared=SHARED, baseline=None, names=ROWS,
    classes=CLASSES, repeat=False,
):  # fmt: skip
    """A comparison with made-up numbers: row k is 0.012 k worse, pairs 2 places apart differ."""
    slugs = class_slugs(classes)
    keys = ["f1_macro", "accuracy", *(f"f1/{key}" for key in slugs)]
    scores = []
    for r in range(rows):
        count = 1 if r in single else seeds
        remarks = (*shared, *(own or {}).get(r, ()))
        runs = tuple(
            TestedRun(f"{r:02}{s:02}{'a' * 28}", f"run-{r}-{s}", names[r],
                      "0" if repeat else str(s), "d" * 64, pd.DataFrame(), remarks, 10.0 + r)
            for s in range(count)
        )  # fmt: skip
        per_run = {
            key: tuple(0.9 - 0.012 * r - 0.031 * k - 0.002 * s for s in range(count))
            for k, key in enumerate(keys)
        }
        scores.append(
            RowScore(
                row=names[r],
                runs=runs,
                scores={k: Interval(np.mean(v), np.mean(v) - 0.021, np.mean(v) + 0.018)
                        for k, v in per_run.items()},
                spread={k: np.std(v, ddof=1) if count > 1 else math.nan
                        for k, v in per_run.items()},
                per_run=per_run,
                remarks=remarks,
            )
        )  # fmt: skip
    couples = list(itertools.combinations(range(rows), 2))
    if baseline is not None:
        couples = [(a, names.index(baseline)) for a in range(rows) if names[a] != baseline]
    pairs = tuple(
        Pair(
            names[a], names[b], Interval(0.012 * (b - a), 0.012 * (b - a) - 0.015, 0.04), 0.0123,
            0.0456, 0.0321, 5.5, 0.0234, 0.0789, abs(a - b) >= 2, f"{names[a]} ~ {names[b]}: said",
        )
        for a, b in couples
    )  # fmt: skip
    return Comparison(
        tuple(scores), pairs, tuple(classes), 1984, 1951, "d" * 64, 0.95, 2000, shared, baseline
    )


def markdown(c, missing=()):
    return to_markdown(c, title=TITLE, about=ABOUT, missing=missing)


def page(c, missing=(), figures=None):
    return to_html(c, title=TITLE, about=ABOUT, missing=missing, figures=figures or {})


def printed(c, missing=(), width=200):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_comparison(console, c, title=TITLE, about=ABOUT, missing=missing)
    return console.file.getvalue()


def in_words(text):
    """What a reader of Markdown, HTML or a terminal sees, in one line."""
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", " ", text))
    return " ".join(re.sub(r"\\(?=[\[\]_*`#~])|\*\*", "", text).split())


def all_media(c, missing=()):
    return {
        "markdown": in_words(markdown(c, missing)),
        "html": in_words(page(c, missing)),
        "terminal": in_words(printed(c, missing)),
    }


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def dots(axes):
    """Mean dots of a figure, from the top: x and colours."""
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    return sorted(lines, key=lambda line: line.get_ydata()[0])


def bars(axes):
    """Interval lines of a figure, from the top."""
    lines = [line for line in axes.lines if line.get_marker() == "None" and len(
        set(line.get_ydata())) == 1]  # fmt: skip
    return sorted(lines, key=lambda line: line.get_ydata()[0])


# what is said


def test_every_medium_starts_with_the_warnings_and_then_the_headline():
    c = made(own={1: ("weights=partial-imagenet",)})
    for medium, text in all_media(c).items():
        places = [text.index(part) for part in (
            TITLE, "! synthetic data" if medium != "html" else "synthetic data", "not controlled",
            "weights=partial-imagenet (rows marked †)", "Not for diagnosis", in_words(c.headline()),
        )]  # fmt: skip
        assert places == sorted(places), medium
        assert all(f"{value}" in text for value in ABOUT.values()), medium


def test_every_medium_tells_the_scores_of_every_row_and_class():
    c = made()
    for medium, text in all_media(c).items():
        for row in c.rows:
            macro = row.scores["f1_macro"]
            assert row.row in text, medium
            assert f"{macro.value:.3f}" in text, medium
            assert f"{macro.low:.3f}–{macro.high:.3f}" in text, medium
            for key in ("f1/covid", "f1/viral_pneumonia", "accuracy"):
                assert f"{row.scores[key].value:.3f}" in text, (medium, key)
        # a terminal breaks the heads of its columns between words
        assert all(word in text for name in CLASSES for word in name.split()), medium
        assert "0.002" in text, medium  # SD over seeds
        assert "12.0" in text, medium  # minutes


def test_the_line_of_a_row_has_its_numbers_under_the_right_heads():
    lines = markdown(made()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| row | seeds"))
    head, _, first = (line.strip("| ").split(" | ") for line in lines[start : start + 3])
    line = dict(zip(head, first, strict=True))
    row = made().rows[0]
    assert line == {
        "row": "resnet18, none",
        "seeds": "3",
        "macro F1": f"{row.scores['f1_macro'].value:.3f}",
        "95% interval": "0.877–0.916",
        "SD over seeds": f"{row.spread['f1_macro']:.3f}",
        "accuracy": f"{row.scores['accuracy'].value:.3f}",
        "minutes a run": "10.0",
        "F1 COVID": f"{row.scores['f1/covid'].value:.3f}",
        "F1 Lung\\_Opacity": f"{row.scores['f1/lung_opacity'].value:.3f}",
        "F1 Normal": f"{row.scores['f1/normal'].value:.3f}",
        "F1 Viral Pneumonia": f"{row.scores['f1/viral_pneumonia'].value:.3f}",
    }


def test_cells_without_a_score_are_told_and_counted_beside_the_seeds():
    for medium, text in all_media(made(), MISSING).items():
        assert "Without a score" in text, medium
        for part in ("failed", "MemoryError: 3.1 GB", "cnn, focal", "not run yet", "--only"):
            assert part in text, (medium, part)
        assert "resnet18, weighted 3 of 4" in text.replace("| ", ""), medium
    assert "Without a score" not in markdown(made())


def test_a_repeated_seed_is_not_counted_twice():
    text = markdown(made(2, 2, repeat=True))
    assert "| 1 (2 runs) |" in text
    assert f"> **! {ONE_SEED}**" in text


def test_remarks_of_some_rows_mark_those_rows_and_no_others():
    c = made(own={1: ("weights=partial-imagenet",), 2: ("weights=partial-imagenet",)}, single=(2,))
    for medium, text in all_media(c).items():
        assert "resnet18, weighted†" in text, medium
        assert "resnet18, oversample†,‡" in text, medium
        assert not re.search(r"(resnet18, none|cnn, none)[†‡]", text), medium
        assert "† weights=partial-imagenet" in text, medium
        assert f"‡ {ONE_SEED}" in text, medium


def test_a_long_remark_is_told_whole_once_and_in_short_beside_its_mark():
    remark = "on all but the lungs 0.844 (0.823–0.864), on their outline 0.696 (0.670–0.721)"
    c = made(own={1: (remark,)})
    for medium, text in all_media(c).items():
        told = " ".join(text.split()).replace("\\", "")
        assert told.count(remark) == 1, medium
        assert "† on all but the lungs 0.844 (0.823–0.864), on their outline …" in told, medium
    for name, figure in all_figures(c).items():
        assert "† on all but the lungs 0.844 (0.823–0.864), on their outline …" in " ".join(
            texts(figure)
        ), name


def test_one_seed_everywhere_is_a_warning_for_all_rows():
    c = made(single=range(4))
    for medium, text in all_media(c).items():
        assert ONE_SEED in text, medium
        assert not set(text) & set("†‡"), medium
    assert "| – |" in markdown(c)  # no spread is known


def test_all_verdicts_and_pairs_are_in_the_files_those_of_the_leader_first():
    c = made(12, 5)
    assert len(c.pairs) == 66
    for text in (in_words(markdown(c)), in_words(page(c))):
        assert all(pair.verdict in text for pair in c.pairs)
        assert re.search(
            r"resnet18, none \W*cnn, none \W*yes \W*\+0.036 \W*\+0.021 to \+0.040", text
        )
        assert all(p in text for p in ("0.012", "0.046", "0.032", "0.023", "0.079"))
    against = made(4, baseline="cnn, none")
    told = [line for line in markdown(against).splitlines() if line.endswith(": said")]
    assert told == [f"- {row} \\~ cnn, none: said" for row in ROWS[:3]]
    shown = printed(c)
    assert "resnet18, none ~ cnn, oversample, 112 px: said" in shown
    assert "and 54 more in the written report" in shown


def test_a_negative_difference_has_a_minus_that_reads_as_one():
    text = markdown(made(2, baseline="resnet18, none"))
    assert "| −0.012 | −0.027 to +0.040 |" in text


def test_every_run_can_be_found_again():
    c = made(own={})
    for text in (markdown(c), page(c)):
        assert all(run.run_id in text and run.name in text for row in c.rows for run in row.runs)


def test_the_reading_says_what_the_intervals_hold():
    told = in_words(markdown(made()))
    assert "1,984 test images (digest dddddddddddd)" in told
    assert "2,000 resamples of 1,951 groups" in told
    assert "each class nearly is a source" in told
    assert "too narrow" not in told
    assert "too narrow" in in_words(markdown(made(single=(1,))))
    assert "each class nearly is a source" not in in_words(markdown(made(shared=())))


def test_a_single_row_has_no_word_on_pairs():
    for medium, text in all_media(made(1, 1)).items():
        assert "resnet18, none" in text, medium
        assert "pairs" not in text.lower(), medium
        assert "Holm" not in text, medium


def test_what_was_not_measured_is_a_dash_and_not_nan():
    c = made(2)
    blank = Interval(math.nan, math.nan, math.nan)
    for row in c.rows:
        row.scores.update({"f1_macro": blank, "f1/covid": blank})
    for medium, text in all_media(c).items():
        told = text.replace(in_words(c.headline()), "")
        assert not re.search(r"\bnan\b", told, flags=re.IGNORECASE), medium
    for plot in (plot_rows, plot_classes, plot_pairs):
        plot(c, subtitle=SUBTITLE).canvas.draw()


# names that act


EVIL = [
    "<script>alert(1)</script>",
    "a|b [x](javascript:y) *c*",
    r"[red]d[/red] $\nope$ {{ 7 * 7 }}",
]


def evil():
    return made(3, names=EVIL, classes=("<b>A</b>", "B|2"), own={1: ("<img src=x>",)})


def test_names_cannot_act_in_markdown():
    text = markdown(evil(), [Missing(EVIL[0], "0", "failed", "line one\nline two | three")])
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_names_cannot_act_in_html():
    text = page(evil(), [Missing(EVIL[1], "0", "failed", "<iframe>")], all_figures(evil()))
    tags = {tag for tag, _ in elements(text)}
    assert not tags & {"script", "iframe", "b"}
    assert "&lt;script&gt;alert(1)" in text
    assert "{{ 7 * 7 }}" in text


def test_names_cannot_act_in_a_terminal():
    text = printed(evil())
    assert re.search(rf"^ *{re.escape(EVIL[2])} +3 ", text, flags=re.MULTILINE)
    assert f"{EVIL[0]} ~ {EVIL[2]}: said" in text


# one page


def all_figures(c):
    figures = {"rows": plot_rows(c, subtitle=SUBTITLE), "classes": plot_classes(c, subtitle="x")}
    return figures | ({"pairs": plot_pairs(c, subtitle=SUBTITLE)} if c.pairs else {})


def elements(text):
    """Opening tags of a page with their attributes; fails where a tag is not closed."""
    found, still_open = [], []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))
            if tag not in ("meta", "img", "br"):
                still_open.append(tag)

        def handle_endtag(self, tag):
            assert still_open.pop() == tag

    Parser().feed(re.sub(r"(base64,.{10})[^\"]*", r"\1", text))  # the parser is slow on images
    assert not still_open
    return found


@pytest.mark.parametrize("rows", [1, 3])
def test_the_page_stands_alone(rows):
    c = made(rows)
    text = page(c, MISSING, all_figures(c) | {"extra": Figure()})
    found = elements(text)
    assert not [tag for tag, _ in found if tag in ("script", "link", "iframe", "object", "base")]
    for tag, attributes in found:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for _, a in found if "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_every_figure_is_on_the_page_once_and_described():
    c = made()
    found = elements(page(c, figures=all_figures(c) | {"extra": plot_rows(c, subtitle="x")}))
    images = [attributes for tag, attributes in found if tag == "img"]
    assert len(images) == 4
    alts = " ".join(image["alt"] for image in images)
    assert all(part in alts for part in ("Macro F1 of each row", "F1 of each class", "Differences"))
    assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in images)
    assert all(int(image["width"]) > 500 for image in images)


def test_only_what_is_long_and_looked_up_is_folded():
    def folded(c):
        parts = re.findall(r"<details>.*?</details>", page(c), flags=re.DOTALL)
        return in_words(" ".join(parts))

    assert folded(made(4)) == ""
    hidden = folded(made(12, 5))
    assert "run-11-4" in hidden
    assert "minus row" in hidden
    assert "resnet18, none ~ cnn, none: said" not in hidden
    assert "SD over seeds" not in folded(made(14, names=[f"row {i}" for i in range(14)]))


# terminal


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_shows_all_numbers(width):
    c = made(12, 5, own={1: ("weights=partial-imagenet",)})
    text = printed(c, MISSING, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in c.rows:
        for key in ("f1_macro", "accuracy", "f1/covid", "f1/viral_pneumonia"):
            assert f"{row.scores[key].value:.3f}" in text


def test_a_terminal_leaves_out_what_is_looked_up():
    text = printed(made(12))
    assert "run-0-0" not in text
    assert "minus row" not in text
    assert "Which rows differ" in text


def test_a_terminal_shows_the_pairs_with_both_tests_while_they_are_few():
    text = in_words(printed(made()))
    assert "McNemar" in text
    assert re.search(r"resnet18, none cnn, none yes \+0.036 .* 0.023 0.079", text)


def test_a_note_begins_with_the_verdict_and_what_must_stand_beside_it():
    c = made(own={1: ("weights=partial-imagenet",)})
    text = to_note(c, about=ABOUT, missing=MISSING)
    first = in_words(text.split("\n\n")[0])
    remarks, verdict = first.split("Not for diagnosis. ")
    assert verdict == f"{in_words(c.headline())} 2 cells without a score."
    for told in (*SHARED, "weights=partial-imagenet (rows marked †)"):
        assert told in remarks
    once = in_words(to_note(made(single=range(4)), about={}).split("\n\n")[0])
    assert once.count(ONE_SEED) <= 1, "the headline tells it"
    assert TITLE not in text
    assert all(part in in_words(text) for part in (*ABOUT.values(), "MemoryError", "All pairs"))


# figures


CASES = {
    "one": lambda: made(1, 1),
    "four": lambda: made(own={1: ("weights=partial-imagenet",)}, single=(2,)),
    "twelve": lambda: made(12, 5, own={5: ("a remark of many words " * 9,)}),
    "baseline": lambda: made(baseline="cnn, none"),
    "long_names": lambda: made(3, names=LONG_ROWS, classes=LONG_CLASSES),
}


def drawn_texts(figure):
    """Texts on the page; matplotlib also keeps labels of ticks outside the axes."""
    hidden = set()
    for axis in (axis for axes in figure.findobj(Axes) for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [t for t in axis.get_major_ticks() if not low <= t.get_loc() <= high]
        hidden |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in found if text not in hidden and text.get_text().strip()]


@pytest.mark.parametrize("case", CASES)
def test_no_text_is_cut_or_printed_over_another(case):
    for name, figure in all_figures(CASES[case]()).items():
        figure.canvas.draw()
        page = figure.bbox.padded(1)
        boxes = {text: text.get_window_extent() for text in drawn_texts(figure)}
        for text, box in boxes.items():
            assert box.x0 >= page.x0, (name, text)
            assert box.x1 <= page.x1, (name, text)
            assert box.y0 >= page.y0, (name, text)
            assert box.y1 <= page.y1, (name, text)
        inner = [(t, b.padded(-1)) for t, b in boxes.items() if t is not figure._suptitle]
        for (one, box), (other, other_box) in itertools.combinations(inner, 2):
            assert not box.overlaps(other_box), (name, one, other)


def test_figures_carry_the_remarks_even_where_the_caller_forgot_them():
    c = made(own={1: ("weights=partial-imagenet",)}, single=(2,))
    for name, figure in all_figures(c).items():
        shown = " ".join(texts(figure)).replace("\n", " ")
        for part in (*SHARED, "† weights=partial-imagenet", f"‡ {ONE_SEED}"):
            assert part in shown, (name, part)
        assert "resnet18, weighted†" in shown, name
    told = " ".join(texts(plot_rows(c, subtitle="Synthetic data, 9 images")))
    assert told.lower().count("synthetic data") == 1


def test_rows_are_drawn_with_their_intervals_and_runs():
    c = made(single=(2,))
    axes = plot_rows(c, subtitle=SUBTITLE).axes[0]
    for row, dot, bar in zip(c.rows, dots(axes), bars(axes), strict=True):
        macro = row.scores["f1_macro"]
        assert dot.get_xdata() == pytest.approx([macro.value])
        assert bar.get_xdata() == pytest.approx([macro.low, macro.high])
        assert bar.is_dashed() == (len(row.runs) == 1)
        assert any(f"{macro.value:.3f}  (" in text for text in texts(axes))
    runs = [tuple(cloud.get_offsets()[:, 0]) for cloud in axes.collections]
    assert runs == [pytest.approx(row.per_run["f1_macro"]) for row in c.rows if len(row.runs) > 1]


def test_the_colour_of_a_row_says_how_it_stands():
    def colors(c):
        return [to_hex(dot.get_color()) for dot in dots(plot_rows(c, subtitle="x").axes[0])]

    leader, second, third, fourth = colors(made())  # made(): rows 2 places apart differ
    assert leader == second
    assert third == fourth != leader
    first, second, third, base = colors(made(baseline="cnn, none"))
    assert first == second != third
    assert base not in (first, third)


def test_classes_have_a_panel_each():
    c = made(single=(1,))
    axes = plot_classes(c, subtitle=SUBTITLE).axes
    assert [a.get_title(loc="left") for a in axes] == list(CLASSES)
    for panel, key in zip(
        axes, ("covid", "lung_opacity", "normal", "viral_pneumonia"), strict=True
    ):
        found = [dot.get_xdata()[0] for dot in dots(panel)]
        assert found == pytest.approx([row.scores[f"f1/{key}"].value for row in c.rows])
        assert [bar.is_dashed() for bar in bars(panel)] == [False, True, False, False]


def test_pairs_are_drawn_with_a_line_at_zero_and_distinguishable_ones_filled():
    c = made(single=(3,))
    axes = plot_pairs(c, subtitle=SUBTITLE).axes[0]
    assert [0, 0] in [list(line.get_xdata()) for line in axes.lines]
    for pair, dot, bar in zip(c.pairs, dots(axes), bars(axes), strict=True):
        assert dot.get_xdata() == pytest.approx([pair.difference.value])
        assert bar.get_xdata() == pytest.approx([pair.difference.low, pair.difference.high])
        assert (to_hex(dot.get_markerfacecolor()) != "#ffffff") == pair.distinguishable
        assert bar.is_dashed() == ("cnn, none" in (pair.a, pair.b))
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[:2] == ["resnet18, none", "minus resnet18, weighted"]
    assert "Holm's correction for 6 pairs" in " ".join(texts(axes.figure))
    with pytest.raises(ValueError, match="no pairs"):
        plot_pairs(made(1), subtitle=SUBTITLE)


# with real statistics


def test_a_real_comparison_can_be_shown():
    generator = np.random.default_rng(0)
    y_true = np.arange(90) % 3
    names = np.array(["A", "B", "C"])

    def run(row, seed, right):
        y_pred = np.where(generator.random(90) < right, y_true, (y_true + 1) % 3)
        table = pd.DataFrame({
            "image_id": [f"i{i}" for i in range(90)], "true": names[y_true],
            "predicted": names[y_pred], "correct": y_pred == y_true, "group": np.arange(90) // 2,
        })  # fmt: skip
        return TestedRun(f"{row}{seed}", f"{row}{seed}", row, str(seed), "d", table, SHARED)

    c = compare([run("good", s, 0.95) for s in range(3)] + [run("bad", 0, 0.4)], samples=200)
    for medium, text in all_media(c).items():
        assert in_words(c.headline()) in text, medium
        assert in_words(c.pairs[0].verdict) in text, medium
    assert len(all_figures(c)) == 3
