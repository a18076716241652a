"""The import rules of the package, as a test: layers may only look down."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cxr_mlflow"
GROUND = {"errors", "names", "stopping"}
LAYERS: list[set[str]] = [
    # each module may import the ground, its own room, and what stands in a line above it
    {"errors", "names", "environment", "stopping"},
    {"config"},
    {"typed_options"},
    {"command_config", "labels"},
    {"experiment.plan"},
    {"data.phantom", "data.demo", "data.storage", "data.preprocess"},
    {
        "data.layout",
        "data.scan",
        "data.locate",
        "data.download",
        "data.catalog",
        "data.pairing",
        "data.source_file",
    },
    {
        *("data.duplicates", "data.splits", "data.cache", "data.transforms"),
        *("data.class_map", "data.fingerprints", "data.contact_sheet"),
    },
    {
        *("data.audit", "data.audit_copies", "data.audit_features", "data.audit_report"),
        *("data.audit_shortcuts", "data.audit_sources", "data.audit_listing"),
    },
    {"data.dataset", "data.prepare"},
    {"models", "strategies", "weights"},
    {"training.loop", "training.callbacks", "training.checkpoint", "training.fitting"},
    {
        *("evaluation.cells",),
        *("evaluation.metrics", "evaluation.intervals", "evaluation.figure", "evaluation.plots"),
        *("evaluation.sheets", "evaluation.training_plots", "evaluation.note"),
        *(
            "evaluation.report",
            "evaluation.assessment",
            "evaluation.sources",
            "evaluation.comparison",
        ),
        *("evaluation.comparison_inputs", "evaluation.comparison_statistics"),
        *("evaluation.ratios", "evaluation.calibration", "evaluation.calibration_plots"),
        *("evaluation.saliency", "evaluation.source_probe"),
        *("evaluation.selective", "evaluation.conformal", "evaluation.present"),
        *("evaluation.subgroups", "evaluation.markdown", "evaluation.score"),
        *("evaluation.control_facts", "evaluation.control_words", "evaluation.note_controls"),
        *("evaluation.model_card", "evaluation.model_card_facts", "evaluation.model_card_gather"),
        *("evaluation.model_card_scores", "evaluation.model_card_words"),
        *("evaluation.model_card_calibration",),
        *("evaluation.comparison_verdicts", "evaluation.comparison_words"),
        *("evaluation.comparison_plots", "evaluation.comparison_report"),
    },
    {
        *("serving.scorer", "serving.scorer_config", "serving.frames", "serving.export"),
        *("serving.pyfunc_model",),
        *("serving.package", "serving.gate", "serving.gate_child"),
        *("serving.predictor", "serving.files"),
        *("serving.http_refusals", "serving.http_json", "serving.http_payload"),
        *("serving.http_scoring",),
        *("serving.http_body", "serving.http_metrics", "serving.http_protocol"),
        *("serving.http_guard", "serving.http_app", "serving.http_model", "serving.http_server"),
    },
    {
        *("tracking.run", "tracking.record", "tracking.parents", "tracking.tested"),
        *("tracking.tracker", "tracking.journal", "tracking.delivery", "tracking.journaled"),
        *("tracking.unfinished", "tracking.processes", "tracking.system_metrics"),
        *("tracking.comparison", "tracking.registry", "tracking.cards"),
        *("tracking.origin", "tracking.remote", "tracking.answers", "tracking.locks"),
        *("tracking.joined", "tracking.last_word", "tracking.patience"),
        *("tracking.cells", "tracking.named", "tracking.views"),
    },
    {"inside", "explain"},
    {
        "describe",
        "registration",
        "handover",
        "compared",
        "compare",
        "controls",
        "calibrate",
        "card",
    },
    {"promises", "external", "external_words"},
    {"attempts", "telling", "sync"},
    {"pipeline", "assess"},
    {"experiment.board", "experiment.runner", "experiment.child"},
    {"experiment.unsent", "experiment.earlier", "experiment.parent_run"},
    {"experiment.best", "experiment.preflight", "experiment.conduct"},
    {"controlled", "control_models"},
    {"experiment.session"},
    {"cli.options"},
    {
        *("cli.data", "cli.evaluate", "cli.predict", "cli.promote", "cli.train"),
        *("cli.serve",),
        *("cli.experiment", "cli.compare", "cli.control", "cli.data_tables", "cli.sync"),
    },
]
MLFLOW_ROOMS = ("tracking", "serving")
FORBIDDEN = {
    "evaluation": {"torch", "mlflow"},
    "data.preprocess": {"torch", "cv2", "albumentations", "mlflow", "pandas"},
    "serving.scorer": {"torch", "cv2", "albumentations", "mlflow"},
    "serving.scorer_config": {"torch", "numpy", "pandas", "mlflow"},
    "serving.frames": {"torch", "cv2", "albumentations", "mlflow"},
    "serving.http_model": {"torch"},
    "serving.http_app": {"torch", "mlflow"},
    "serving.http_json": {"torch", "numpy", "mlflow", "pandas"},
    "serving.http_payload": {"torch", "mlflow", "pandas"},
    "serving.http_scoring": {"torch", "mlflow"},
    "serving.http_server": {"torch", "mlflow"},
    "command_config": {"torch", "mlflow", "numpy", "pandas"},
    "config": {"torch", "mlflow", "numpy", "pandas"},
    "environment": {"torch", "mlflow", "numpy", "pandas"},
    "stopping": {"torch", "mlflow", "numpy", "pandas"},
}
MAX_LINES = 320


@cache
def imports_of(path: Path) -> set[str]:
    """Absolute module names that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} uses a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@cache
def modules() -> dict[str, Path]:
    paths = sorted(p for p in PACKAGE.rglob("*.py") if not p.name.startswith("__"))
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in paths}


@cache
def own_imports(path: Path) -> set[str]:
    return {i.removeprefix("cxr_mlflow.") for i in imports_of(path)} & set(modules())


def test_every_module_has_one_place():
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(modules())


def test_imports_are_acyclic():
    TopologicalSorter({n: own_imports(p) for n, p in modules().items()}).prepare()


def test_modules_only_look_down_or_beside():
    floor = {name: level for level, layer in enumerate(LAYERS) for name in layer}
    for name, path in modules().items():
        for used in own_imports(path):
            assert floor[used] <= floor[name], f"{name} imports {used}, which stands above it"


def test_training_and_evaluation_do_not_know_each_other():
    for name, path in modules().items():
        rooms = {used.split(".")[0] for used in own_imports(path)}
        if name.startswith("training."):
            assert not rooms & {"evaluation", "tracking", "serving"}, name
        if name.startswith("evaluation."):
            assert not rooms & {"training", "tracking", "serving", "data"}, name


def test_mlflow_has_two_doors():
    for name, path in modules().items():
        if any(i.split(".")[0] == "mlflow" for i in imports_of(path)):
            assert name.startswith(MLFLOW_ROOMS), f"{name} imports mlflow"


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_light_rooms_stay_light(room):
    for name, path in modules().items():
        if name == room or name.startswith(f"{room}."):
            heavy = {i.split(".")[0] for i in imports_of(path)} & FORBIDDEN[room]
            assert not heavy, f"{name} imports {heavy}"


def test_modules_say_why_they_exist_and_stay_small():
    for name, path in modules().items():
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{name} has no first line"
        assert len(text.splitlines()) <= MAX_LINES, f"{name} is too long"
