"""The score of knowing nothing of an image but the collection it came from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Array = NDArray[np.float64]

MAX_RULES = 20_000
"""So many rules are tried one by one: 4 classes and 7 sources that several classes share."""


@dataclass(frozen=True)
class SourceFloor:
    """What a rule scores that knows nothing of an image but its source.

    Attributes
    ----------
    f1_macro : float
        Of the best rule.
    f1 : dict of str to float
        By class name.
    majority_f1_macro : float
        Of the plain rule that takes a source for its most frequent class.
    rule : dict of str to str
        Source -> the class it is taken for.
    otherwise : str
        Class that a source is taken for which the rule does not know.
    """

    f1_macro: float
    f1: dict[str, float]
    majority_f1_macro: float
    rule: dict[str, str]
    otherwise: str

    def predict(self, sources: Sequence[str], classes: Sequence[str]) -> Labels:
        """Class indices int64 (N,) that the best rule gives to sources."""
        place = {name: label for label, name in enumerate(classes)}
        taken_for = [self.rule.get(source, self.otherwise) for source in sources]
        return np.array([place[name] for name in taken_for], np.int64)


def source_floor(
    sources: Sequence[str],
    labels: Labels,
    classes: Sequence[str],
    *,
    tested: tuple[Sequence[str], Labels] | None = None,
) -> SourceFloor:
    """Macro F1 of the best rule source -> class: what a network has to beat by far.

    Parameters
    ----------
    sources : sequence of N str
    labels : int64 array of shape (N,)
        The rule is made on these.
    classes : sequence of C str
    tested : (sequence of M str, int64 array of shape (M,)), optional
        Sources and labels that the rule is scored on; the same ones by default. A source that was
        not there when the rule was made is taken for the most frequent class.

    Returns
    -------
    SourceFloor
    """
    names, codes = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (codes, labels), 1)
    seen, truth = (sources, labels) if tested is None else tested
    best, plain = _best_rule(counts), counts.argmax(1)
    other = int(np.bincount(labels).argmax())

    def score(rule: Labels) -> Array:
        taken_for = dict(zip(names.tolist(), rule.tolist(), strict=True))
        predicted = np.array([taken_for.get(source, other) for source in seen], np.int64)
        table = np.zeros((len(classes),) * 2)
        np.add.at(table, (truth, predicted), 1)
        return _f1(table)

    f1 = score(best)
    return SourceFloor(
        float(f1.mean()),
        dict(zip(classes, f1.tolist(), strict=True)),
        float(score(plain).mean()),
        {name: classes[label] for name, label in zip(names.tolist(), best.tolist(), strict=True)},
        classes[other],
    )


def _best_rule(counts: Array) -> Labels:
    """Class for each source, int64 (S,), with the highest macro F1 over images (S, C).

    A source of one class is best taken for that class. Of the others all rules are tried, where
    they are few; else the best of two good ones is bettered by exchange to where none helps.
    """
    num_classes = counts.shape[1]
    plain = counts.argmax(1)
    mixed = np.flatnonzero((counts > 0).sum(1) > 1)
    if num_classes ** len(mixed) <= MAX_RULES:
        tries = itertools.product(range(num_classes), repeat=len(mixed))
        rules = [_with(plain, mixed, choice) for choice in tries]
    else:
        starts = (plain, (counts / counts.sum(0).clip(1)).argmax(1))
        rules = [_exchange(start, counts) for start in starts]
    return max(rules, key=lambda rule: _f1(_confusion(rule, counts)).mean())


def _with(rule: Labels, places: Labels, choice: tuple[int, ...]) -> Labels:
    changed = rule.copy()
    changed[places] = choice
    return changed


def _confusion(rule: Labels, counts: Array) -> Array:
    table = np.zeros((counts.shape[1],) * 2)
    np.add.at(table.T, rule, counts)
    return table


def _exchange(rule: Labels, counts: Array) -> Labels:
    """Change one source at a time as long as the macro F1 rises."""
    rule, table = rule.copy(), _confusion(rule, counts)
    reached, last = float(_f1(table).mean()), -1.0
    while reached > last:
        last = reached
        for source, found in enumerate(counts):
            for label in range(len(table)):
                moved = table.copy()
                moved[:, rule[source]] -= found
                moved[:, label] += found
                if (changed := float(_f1(moved).mean())) > reached:
                    reached, table, rule[source] = changed, moved, label
    return rule


def _f1(table: Array) -> Array:
    """F1 of each class of a table (true, predicted); 0 for a class that is nowhere."""
    total = table.sum(0) + table.sum(1)
    return np.divide(2.0 * np.diag(table), total, out=np.zeros(len(table)), where=total > 0)
