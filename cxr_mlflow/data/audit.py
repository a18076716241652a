"""What a data set gives away by itself, before any network: copies, sources, files, shortcuts."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_mlflow.data.audit_copies import Copies, SplitAudit, audit_split, describe_copies
from cxr_mlflow.data.audit_features import (
    build_views,
    count_values,
    describe_files,
    describe_masks,
    measure_files,
)
from cxr_mlflow.data.audit_listing import Listing, measure_listings
from cxr_mlflow.data.audit_shortcuts import TITLES, Estimate, Shortcut, measure_shortcuts
from cxr_mlflow.data.audit_sources import SourceFloor, source_floor
from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.duplicates import Duplicates
from cxr_mlflow.data.splits import Split
from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.names import slug

AUDIT_VERSION = 3
"""Raise it whenever the audit of the same data would come out otherwise."""


@dataclass(frozen=True)
class Audit:
    """The findings of an audit; plain numbers and words, as they stand in the JSON.

    Attributes
    ----------
    name, digest, is_demo, classes, num_images
        Of the catalog.
    sources : dict of str to (dict of str to int)
        Class -> source -> images, most frequent first.
    files, masks : dict of str to (dict of str to value)
        Class -> what its files and masks are like; see the names in it.
    histograms : dict of str to list of float
        Class -> mean share of each of 64 grey levels.
    copies : Copies
    floor : SourceFloor
        The best rule source -> class, made and scored on all images.
    shortcuts : tuple of Shortcut
    listings : tuple of Listing
        Whether the films of a class bear out its listed sources.
    split : SplitAudit, optional
    cached : bool
        Whether the numbers were measured before; not in the JSON.
    """

    name: str
    digest: str
    is_demo: bool
    classes: tuple[str, ...]
    num_images: int
    sources: dict[str, dict[str, int]]
    files: dict[str, dict[str, Any]]
    masks: dict[str, dict[str, Any]]
    histograms: dict[str, list[float]]
    copies: Copies
    floor: SourceFloor
    shortcuts: tuple[Shortcut, ...]
    listings: tuple[Listing, ...]
    split: SplitAudit | None = None
    cached: bool = field(default=False, compare=False)

    @property
    def sources_known(self) -> bool:
        """Whether the metadata tell the source of any image."""
        return any(counts.keys() - {"unknown"} for counts in self.sources.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be said wherever a score by source is shown, once for each class."""
        return tuple({each.class_name: each.warning for each in self._doubted}.values())

    @property
    def doubted(self) -> dict[str, tuple[str, ...]]:
        """Classes whose listed sources do not fit their films -> the sources in doubt."""
        found: dict[str, dict[str, None]] = {}
        for each in self._doubted:
            found.setdefault(each.class_name, {}).update(dict.fromkeys(each.sources))
        return {name: tuple(sources) for name, sources in found.items()}

    @property
    def _doubted(self) -> list[Listing]:
        return [each for each in self.listings if each.doubted]

    def headline(self) -> str:
        """Say in one sentence how much can be had without a finding."""
        measured = [s for s in self.shortcuts if not s.unmeasured]
        accused = [s for s in measured if s.accused]
        if not measured:
            return "No shortcut could be measured: the classes have too few distinct images."
        if not accused:
            return f"None of {len(measured)} shortcuts tells the classes beyond chance."
        worst = max(accused, key=lambda s: s.balanced_accuracy.value)
        return (
            f"{len(accused)} of {len(measured)} shortcuts tell the classes beyond chance, most of "
            f"all {TITLES[worst.name].lower()}: balanced accuracy {worst.balanced_accuracy}, "
            f"chance {worst.chance:.2f}."
        )

    def summary(self) -> list[str]:
        """Headline, copies, split, source floor and listed sources, a sentence each."""
        copies = self.copies
        lines = [
            self.headline(),
            f"Copies of one film: {copies.groups} groups with {copies.images} images "
            f"(links: {copies.exact_pairs} exact, {copies.near_pairs} near); across classes: "
            f"{copies.across_classes}, across sources: {copies.across_sources}.",
        ]
        floor = f"Source alone: macro F1 {self.floor.f1_macro:.3f}"
        if self.split:
            floor += f", on the test images {self.split.floor.f1_macro:.3f}"
            lines.append(
                f"Split {self.split.digest[:12]}: groups cut: {self.split.groups_cut}, test images "
                f"with a copy in train: {self.split.tested_and_trained}."
            )
        if not self.sources_known:
            floor = "Source alone: no metadata tell a source"
        lines.append(f"{floor}.")
        lines += [f"Listed sources of {each.verdict}" for each in self.listings]
        if self.cached:
            lines.append("Read from the cache: these data were audited before.")
        return lines

    def metrics(self) -> dict[str, float]:
        """Numbers to log with a run: "audit/balanced_accuracy/border", "audit/source_floor" ..."""
        found = {
            "audit/duplicate_groups": float(self.copies.groups),
            "audit/duplicate_groups_across_classes": float(self.copies.across_classes),
        }
        if self.sources_known:
            found["audit/source_floor"] = self.floor.f1_macro
        for shortcut in self.shortcuts:
            if not shortcut.unmeasured:
                key = slug(shortcut.name)
                found[f"audit/balanced_accuracy/{key}"] = shortcut.balanced_accuracy.value
                found[f"audit/f1_macro/{key}"] = shortcut.f1_macro.value
        for name, worst in self._worst_listings().items():
            for end, value in (("", worst.value), ("_low", worst.low), ("_high", worst.high)):
                found[f"audit/listed_sources/roc_auc{end}/{slug(name)}"] = value
        if self.split:
            found["audit/duplicate_groups_cut"] = float(self.split.groups_cut)
            if self.sources_known:
                found["audit/source_floor_test"] = self.split.floor.f1_macro
        return found

    def _worst_listings(self) -> dict[str, Estimate]:
        """Class -> least ROC AUC between two of its listed sources, where one was measured."""
        areas: dict[str, list[Estimate]] = {}
        for each in self.listings:
            if not each.unmeasured:
                areas.setdefault(each.class_name, []).append(each.roc_auc)
        return {name: min(found, key=lambda area: area.value) for name, found in areas.items()}

    def to_json(self) -> str:
        """All findings as JSON; null where nothing was measured."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "cached"}
        plain = {k: asdict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in told.items()}
        for name in ("shortcuts", "listings"):
            plain[name] = [asdict(each) for each in getattr(self, name)]
        return json.dumps(_nan_to_none({"version": AUDIT_VERSION, **plain}), indent=1)


def audit_data(
    catalog: Catalog,
    duplicates: Duplicates,
    *,
    split: Split | None = None,
    cache_dir: Path,
    progress: bool = False,
) -> Audit:
    """Audit a data set, or read what was found the last time.

    Parameters
    ----------
    catalog : Catalog
        Every class has an image, as `catalog.load_catalog` sees to.
    duplicates : Duplicates
        Found on the catalog.
    split : Split, optional
        Looked at afresh each time; it takes no time.
    cache_dir : Path
        Findings are kept in `audits/` there, under a key of all that they depend on.
    progress : bool
        Show a bar while files are read.

    Raises
    ------
    InputError
        If a file has changed since the catalog was read.
    """
    store = cache_dir / "audits" / f"{_key(catalog, duplicates)}.json"
    audit = _load(store)
    if audit is None:
        audit = _measure(catalog, duplicates, progress)
        with write_whole(store) as temporary:
            temporary.write_text(audit.to_json(), encoding="utf-8")
    told = None if split is None else audit_split(catalog, duplicates, split)
    return replace(audit, name=catalog.name, is_demo=catalog.is_demo, split=told)


def _key(catalog: Catalog, duplicates: Duplicates) -> str:
    table = catalog.table
    suffixes = table["path"].str.rpartition(".")[2]
    digest = hashlib.sha256(repr((AUDIT_VERSION, catalog.digest, catalog.classes)).encode())
    for column in (table["image_id"], table["source"], table["file_bytes"].astype(str), suffixes):
        digest.update("\n".join(column).encode())
    digest.update(catalog.problems.to_csv(index=False).encode())
    digest.update(duplicates.groups.tobytes())
    digest.update(duplicates.pairs["exact"].to_numpy().tobytes())
    return digest.hexdigest()[:32]


def _load(store: Path) -> Audit | None:
    try:
        told = _none_to_nan(json.loads(store.read_text(encoding="utf-8")))
        del told["version"], told["split"]
        told["classes"] = tuple(told["classes"])
        told["copies"] = Copies(**told["copies"])
        told["floor"] = SourceFloor(**told["floor"])
        told["shortcuts"] = tuple(map(Shortcut.from_dict, told["shortcuts"]))
        told["listings"] = tuple(map(Listing.from_dict, told["listings"]))
        return Audit(**told, cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there or damaged: it is measured again


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _none_to_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _none_to_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_none_to_nan(part) for part in value]
    return math.nan if value is None else value


def _measure(catalog: Catalog, duplicates: Duplicates, progress: bool) -> Audit:
    measured = measure_files(catalog, progress=progress)
    table, labels = catalog.table, catalog.table["label"].to_numpy(np.int64)
    views, groups = build_views(catalog, measured), duplicates.groups
    rows_of = {name: np.flatnonzero(labels == k) for k, name in enumerate(catalog.classes)}
    return Audit(
        name=catalog.name,
        digest=catalog.digest,
        is_demo=catalog.is_demo,
        classes=catalog.classes,
        num_images=len(table),
        sources={name: count_values(table["source"].iloc[rows]) for name, rows in rows_of.items()},
        files={name: describe_files(table, measured, rows) for name, rows in rows_of.items()},
        masks={name: describe_masks(catalog, measured, name) for name in rows_of},
        histograms={
            name: measured.histograms[rows].mean(0, dtype=float).tolist()
            for name, rows in rows_of.items()
        },
        copies=describe_copies(catalog, duplicates),
        floor=source_floor(table["source"].tolist(), labels, catalog.classes),
        shortcuts=tuple(measure_shortcuts(views, labels, groups, catalog.classes)),
        listings=tuple(
            measure_listings(
                views["thumbnail"][0], table["source"].tolist(), labels, groups, catalog.classes
            )
        ),
    )
