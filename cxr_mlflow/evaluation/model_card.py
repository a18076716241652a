"""The model card of a trained network as Markdown and as one HTML file; both say the same."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from cxr_mlflow.evaluation.markdown import bullets, escape, plain
from cxr_mlflow.evaluation.model_card_facts import (
    CardFacts,
    External,
    Score,
    with_control_models,
    with_external,
)
from cxr_mlflow.evaluation.model_card_gather import facts_of
from cxr_mlflow.evaluation.model_card_scores import headline, score_table
from cxr_mlflow.evaluation.model_card_words import read_first, write_sections

__all__ = [
    "CardFacts",
    "External",
    "Score",
    "card_page",
    "facts_of",
    "with_control_models",
    "with_external",
    "write_brief",
    "write_card",
]

DESCRIPTION_LIMIT = 5000
"""Most characters of a version's description: PostgreSQL refuses more, sqlite does not look."""
FIGURES = {
    "class_distribution": "Images of each class by split",
    "near_duplicates": "Near-duplicates",
    "training_curves": "Loss and scores by epoch",
    "draws": "How often each class was drawn",
    "confusion_rates": "Confusion, as shares of the true class",
    "confusion_counts": "Confusion, in images",
    "roc": "ROC curves",
    "precision_recall": "Precision and recall",
    "saliency_shares": "Share of the saliency that lies in the lungs",
    "reliability": "Confidence against share of right answers",
    "risk_coverage": "Errors against the share of films answered",
    "prediction_sets": "Prediction sets",
    "worst_errors": "The errors of which the model was surest",
}
"""What figures show, by the names under which `card_page` places them."""
PNG = b"\x89PNG\r\n\x1a\n"


def write_card(facts: CardFacts) -> str:
    """Write a model card as Markdown.

    Parameters
    ----------
    facts : CardFacts

    Returns
    -------
    str
        Names of classes, sources and files cannot act as Markdown or HTML in it.
    """
    template = _environment().get_template("model_card.md.j2")
    return template.render(
        title=escape(f"Model card: {facts.run_name}"),
        warnings=[escape(sentence) for sentence in read_first(facts)],
        headline=headline(facts),
        scores=score_table(facts),
        sections=write_sections(facts),
    )


def card_page(facts: CardFacts, figures: Mapping[str, bytes]) -> str:
    """Write a model card as one HTML file that needs no other file, no script and no network.

    Parameters
    ----------
    facts : CardFacts
    figures : mapping of str to bytes
        PNG images. Those named in `FIGURES` stand where they belong, others after all sections.

    Returns
    -------
    str
        An HTML 5 page, light or dark as the reader's system, fit to be printed.

    Raises
    ------
    ValueError
        If a figure is no PNG image.
    """
    sections = write_sections(facts)
    placed = {name for section in sections for name in section.figures}
    template = _environment().get_template("model_card.html.j2")
    return template.render(
        title=plain(f"Model card: {facts.run_name}"),
        warnings=[plain(sentence) for sentence in read_first(facts)],
        headline=_html(headline(facts)),
        scores=_html(score_table(facts)),
        sections=[
            {
                "id": f"section-{number}",
                "title": section.title,
                "html": _html("\n\n".join(section.blocks)),
                "figures": section.figures,
            }
            for number, section in enumerate(sections, start=1)
        ],
        images={name: _image(name, content) for name, content in figures.items()},
        others=[name for name in figures if name not in placed],
    )


def write_brief(facts: CardFacts) -> str:
    """Write the card in short, as the description of a registered version.

    Parameters
    ----------
    facts : CardFacts

    Returns
    -------
    str
        Markdown of at most `DESCRIPTION_LIMIT` characters: headline, what to read first, scores,
        where the card is. Where that is too long, warnings are left out, and counted.
    """
    warnings = read_first(facts)
    where = (
        "The model card is among the files of this model and of its run: model_card.html, "
        f"model_card.md, model_card.json (run {facts.run_id})."
    )
    for count in range(len(warnings), -1, -1):
        left_out = len(warnings) - count
        more = [f"and {left_out} more: see the model card"] if left_out else []
        told = bullets([*warnings[:count], *more])
        brief = "\n\n".join([headline(facts), told, score_table(facts), escape(where)]) + "\n"
        if len(brief) <= DESCRIPTION_LIMIT:
            break
    return brief


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("cxr_mlflow.evaluation"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _renderer() -> MarkdownIt:
    """CommonMark with tables; HTML in the text is shown, not obeyed; wide tables scroll."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>\n')
    renderer.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return renderer


def _html(markdown: str) -> str:
    return str(_renderer().render(markdown))


def _image(name: str, content: bytes) -> dict[str, Any]:
    """What an <img> needs to show a figure without another file."""
    if not content.startswith(PNG):
        raise ValueError(f"the figure {name!r} is no PNG image")
    width, height = struct.unpack(">II", content[16:24])
    shows = FIGURES.get(name, name.replace("_", " "))
    return {
        "src": f"data:image/png;base64,{base64.b64encode(content).decode()}",
        "caption": shows,
        "width": width,
        "height": height,
    }
