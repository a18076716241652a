"""What a user sees of real runs in the real MLflow UI: it is there, and it is readable."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from PIL import Image
from playwright.sync_api import Locator

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.tracking.parents import children_of, get_run
from cxr_mlflow.tracking.views import FIGURES, view_links
from tools.mlflow_server import serve_mlflow
from tools.mlflow_ui import PLAIN, MlflowUi, find_browser, open_browser, visit

CHROMIUM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
EXPERIMENT = """
name: two strategies
base: {{model: cnn, epochs: 2, image_size: 48, batch_size: 16, lr: 0.003, bootstrap_samples: 100,
  device: cpu, cache_dir: "{cache}"}}
matrix: {{strategy: [none, oversample]}}
seeds: [0]
"""
STRATEGIES = ("none", "oversample")
MODEL = "cxr-classifier-demo"
PARENT_NAME = "two strategies"
IS_SEEN = """element => {
  const range = document.createRange();
  range.selectNodeContents(element);
  return [...range.getClientRects()].every(box => {
    const middle = box.y + box.height / 2;
    const hit = document.elementFromPoint(box.x + box.width / 2, middle);
    if (hit?.dataset.testid === 'truncation-gradient') {  // its upper half covers next to nothing
      const shade = hit.getBoundingClientRect();
      return middle < shade.top + shade.height / 2;
    }
    return element.contains(hit);
  });
}"""
BEST_IS_FIRST = """scores => {
  const tops = [...document.querySelectorAll('a')].filter(link => link.innerText in scores)
    .map(link => [link.getBoundingClientRect().top, scores[link.innerText]])
    .sort((a, b) => a[0] - b[0]);
  return tops.length === Object.keys(scores).length
    && tops.every((place, i) => i === 0 || tops[i - 1][1] >= place[1]);
}"""
BY_SCORE = "orderByKey=metrics.`test/f1_macro`&orderByAsc=false"


@dataclass(frozen=True)
class World:
    """A store with a parent run and a run of each strategy under it."""

    uri: str
    folder: Path
    parent: Run
    runs: dict[str, Run]

    @property
    def home(self) -> str:
        """Path of the table of runs in the UI."""
        return f"experiments/{self.parent.info.experiment_id}/runs"


@pytest.fixture(scope="module")
def world(tmp_path_factory, demo_dir, cache_dir, empty_store):
    from cxr_mlflow.experiment.session import COMPLETED, run_plan

    folder = tmp_path_factory.mktemp("ui")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    before, os.environ["MLFLOW_TRACKING_URI"] = Path.cwd(), uri
    os.chdir(folder)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    file = folder / "two.yaml"
    file.write_text(EXPERIMENT.format(cache=cache_dir))
    asked = ExperimentConfig(file=str(file), data_dir=str(demo_dir), jobs=2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = run_plan(asked, "chest-xray")
        assert result.status == COMPLETED, result.lines
        parent = get_run(result.run_id)
        runs = {c.run.data.tags["strategy"]: c.run for c in children_of(parent)}
        yield World(uri, folder, parent, runs)
    finally:
        os.chdir(before)
        del os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture(scope="module")
def server(world):
    with serve_mlflow(world.uri, world.folder) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with open_browser(CHROMIUM) as opened:
        yield opened


@pytest.fixture
def ui(browser, server):
    """A new visitor; the UI must do without anything from outside this machine."""
    with visit(browser, server) as visitor:
        yield visitor
        assert visitor.strangers == []


def name_of(world: World, strategy: str) -> str:
    return world.runs[strategy].info.run_name


def as_shown(run: Run) -> str:
    """The score of a run as the UI begins to write it: it cuts digits off, zeros at the end too."""
    return str(run.data.metrics["test/f1_macro"])[:5]


def row_of(ui: MlflowUi, name: str) -> Locator:
    """The row of the page's table that has a cell with this text."""
    return ui.page.get_by_role("row").filter(has=ui.page.get_by_text(name, exact=True)).first


def test_a_parent_run_unfolds_to_its_children(ui, world):
    ui.open(world.home, shows=PARENT_NAME)
    names = [run.info.run_name for run in world.runs.values()]
    assert not any(ui.text(name).is_visible() for name in names)
    cell = ui.page.get_by_role("gridcell").filter(has_text=PARENT_NAME)
    cell.get_by_role("button").first.click()
    for name in names:
        ui.text(name).wait_for()


def test_a_parent_run_names_its_children(ui, world):
    ui.open(f"{world.home}/{world.parent.info.run_id}", shows="Child runs")
    for run in world.runs.values():
        link = ui.page.get_by_role("link", name=run.info.run_name, exact=True)
        assert link.get_attribute("href") == f"#/{world.home}/{run.info.run_id}"


def test_the_verdict_of_a_parent_run_is_seen_without_unfolding(ui, world):
    ui.open(f"{world.home}/{world.parent.info.run_id}", shows="Child runs")
    verdict = world.parent.data.tags["verdict"]
    first = ui.page.locator("p", has=ui.page.get_by_text(verdict, exact=True)).first
    assert first.evaluate(IS_SEEN), "each of its lines"
    told = first.inner_text()
    assert told.endswith(verdict)
    for remark in ("synthetic data", "not controlled", "Not for diagnosis"):
        assert remark in told


@pytest.fixture
def plain(browser, server):
    """A visitor with an empty browser."""
    with visit(browser, server, settings=PLAIN) as visitor:
        yield visitor


def test_whoever_follows_the_link_sees_scores_and_choices_best_first(plain, world, server):
    plain.page.goto(view_links(server, world.parent.info.experiment_id)["table"])
    plain.text("Sort: test/f1_macro").wait_for()
    for header in ("test/f1_macro", "model", "strategy", "seed"):
        plain.text(header).wait_for()
    cells = plain.page.get_by_role("gridcell").all_inner_texts()
    for strategy, run in world.runs.items():
        assert strategy in cells
        assert any(cell.startswith(as_shown(run)) for cell in cells)
    scores = {r.info.run_name: r.data.metrics["test/f1_macro"] for r in world.runs.values()}
    plain.page.wait_for_function(BEST_IS_FIRST, arg=scores)


def test_whoever_follows_the_link_sees_figures_side_by_side(plain, world, server):
    plain.page.goto(view_links(server, world.parent.info.experiment_id)["charts"])
    plain.text("Parallel Coordinates").wait_for()
    for run in world.runs.values():
        picture = plain.pictures("test_confusion_rates").and_(plain.pictures(run.info.run_id))
        picture.first.wait_for(state="attached")


def test_runs_are_grouped_by_strategy(ui, world):
    ui.open(f"{world.home}?{BY_SCORE}", shows=name_of(world, "none"))
    ui.toggle_columns(["Dataset", "Source", "test/f1_macro"])
    ui.group_by("strategy")
    for strategy in STRATEGIES:
        ui.text(f"Group: {strategy}").wait_for()
    cells = ui.page.get_by_role("gridcell").all_inner_texts()
    for run in world.runs.values():
        assert any(c.startswith(as_shown(run)) and c.endswith("(average)") for c in cells)


def test_two_runs_compare(ui, world):
    ids = ", ".join(f'"{run.info.run_id}"' for run in world.runs.values())
    home = world.parent.info.experiment_id
    ui.open(
        f'compare-runs?runs=[{ids}]&experiments=["{home}"]',
        shows="Comparing 2 Runs from 1 Experiment",
    )
    plot = ui.page.locator(".js-plotly-plot").first
    plot.get_by_text("strategy", exact=True).first.wait_for()
    for strategy in STRATEGIES:
        plot.get_by_text(strategy, exact=True).first.wait_for()
    told = row_of(ui, "strategy").inner_text()
    assert all(strategy in told for strategy in STRATEGIES)


def test_scores_of_two_runs_are_drawn(ui, world):
    ui.open(f"{world.home}?{BY_SCORE}&compareRunsMode=CHART", shows=name_of(world, "none"))
    ui.find_charts("test/f1_macro")
    ui.text("test/f1_macro").wait_for()
    bars = ui.page.locator(".js-plotly-plot").first
    for run in world.runs.values():
        score = f"{run.data.metrics['test/f1_macro']:.2f}"
        bars.get_by_text(score, exact=True).first.wait_for()


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_of_two_runs_stand_side_by_side(ui, world, figure):
    ui.open(f"{world.home}?{BY_SCORE}&compareRunsMode=CHART", shows=name_of(world, "none"))
    ui.find_charts(figure)
    ui.text(figure).wait_for()
    for run in world.runs.values():
        picture = ui.pictures(figure).and_(ui.pictures(run.info.run_id))
        picture.first.wait_for(state="attached")
    ui.settle()
    assert ui.pictures(figure).count() == len(world.runs)


def test_a_run_page_begins_with_the_score_and_what_to_doubt(ui, world):
    run = world.runs["oversample"]
    ui.open(f"{world.home}/{run.info.run_id}", shows="About this run")
    note = ui.page.get_by_text("Test macro F1").locator("visible=true").first
    told = note.locator("xpath=ancestor-or-self::p[1]").inner_text()
    assert told.startswith(f"Test macro F1 {run.data.metrics['test/f1_macro']:.3f} (95% interval")
    assert "Synthetic data" in told  # in the same breath
    body = ui.page.inner_text("body")
    assert body.index("Test macro F1") < body.index("Metrics (") < body.index("Parameters (")
    assert "Viral Pneumonia" in body  # the table of the note: it was rendered, not cut off


def test_a_run_page_has_metrics_and_parameters(ui, world):
    run = world.runs["oversample"]
    ui.open(f"{world.home}/{run.info.run_id}", shows="About this run")
    ui.page.get_by_placeholder("Search metrics").fill("test/f1_macro")
    ui.text("test/f1_macro").wait_for()
    assert as_shown(run) in row_of(ui, "test/f1_macro").inner_text()
    ui.page.get_by_placeholder("Search parameters").fill("strategy")
    assert "oversample" in row_of(ui, "strategy").inner_text()


def test_a_run_page_draws_metrics_and_pictures(ui, world):
    run = world.runs["oversample"]
    ui.open(f"{world.home}/{run.info.run_id}/model-metrics", shows="Auto-refresh")
    ui.find_charts("val/f1_macro")
    ui.page.locator(".js-plotly-plot").first.wait_for()
    ui.find_charts("training_curves")
    ui.pictures("training_curves").first.wait_for(state="attached")
    ui.settle()


def test_a_picture_is_seen_among_the_artifacts(ui, world):
    run = world.runs["none"]
    ui.open(f"{world.home}/{run.info.run_id}/artifacts", shows="README.md")
    for folder in ("data", "test", "training", "weights"):
        ui.text(folder).wait_for()
    ui.text("test").click()
    ui.text("confusion_rates.png").click()
    ui.text("test/confusion_rates.png").wait_for()
    ui.page.wait_for_function("() => [...document.images].some(i => i.naturalWidth > 500)")


def test_the_registered_model_has_a_champion(ui, world):
    ui.open(f"models/{MODEL}", shows="Version 1")
    row = row_of(ui, "Version 1")
    row.get_by_text("@ champion", exact=True).wait_for()
    assert "synthetic\n: true" in row.inner_text()


def test_a_version_says_how_good_it_is_and_where_it_is_from(ui, world):
    ui.open(f"models/{MODEL}/versions/1", shows="@ champion")
    (version,) = mlflow.MlflowClient(world.uri).search_model_versions(f"name = '{MODEL}'")
    (made_by,) = (run for run in world.runs.values() if run.info.run_id == version.run_id)
    ui.text(made_by.info.run_name).wait_for()
    body = ui.page.inner_text("body")
    assert f"Test macro F1 {made_by.data.metrics['test/f1_macro']:.3f}" in body
    assert "Not for diagnosis: a research tool." in body


def test_all_pictures_of_the_docs_are_drawn_from_a_store(world, tmp_path, repo):
    command = [sys.executable, str(repo / "tools" / "screenshot.py"), "--store", world.uri]
    command += ["--all", "--registered-model", MODEL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr[-2000:]
    names = {"experiment", "strategies", "compare", "parent", "run", "model"}
    assert {path.name for path in tmp_path.iterdir()} == {f"ui_{name}.png" for name in names}
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.width == 1440
            assert len(set(picture.resize((200, 100)).getdata())) > 50, f"{path.name} is empty"


def test_a_store_without_scores_is_named(world, empty_store, repo, tmp_path):
    command = [sys.executable, str(repo / "tools" / "screenshot.py"), "--all", str(tmp_path)]
    done = subprocess.run(
        [*command, "--store", world.uri, "--experiment", "nobody"],
        capture_output=True,
        text=True,
        cwd=repo,
    )
    assert done.returncode == 1
    assert "--experiment nobody: no finished run has test/f1_macro" in done.stderr
