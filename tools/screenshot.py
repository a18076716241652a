"""Pictures of the MLflow UI for the docs: a real server on loopback, a real headless Chromium.

python tools/screenshot.py --store sqlite:///mlflow.db --page experiments/1/runs/RUN_ID out.png
python tools/screenshot.py --store sqlite:///mlflow.db --all docs/images
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import mlflow
from mlflow.entities import Run
from PIL import Image
from playwright.sync_api import Browser

from cxr_mlflow.tracking.parents import PARENT
from cxr_mlflow.tracking.views import FIGURES, SCORE, offer_view, view_links
from tools.mlflow_server import serve_mlflow
from tools.mlflow_ui import MlflowUi, find_browser, open_browser, visit

WIDTH = 1440  # pixels: all columns fit


class Size(click.ParamType[tuple[int, int]]):
    """Width and height of a window."""

    name = "width,height"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """Read "1440,1000"."""
        if isinstance(value, tuple):
            return value
        try:
            width, height = map(int, value.split(","))
        except ValueError:
            self.fail(f"{value} is not two numbers like 1440,1000", param, ctx)
        return width, height


@dataclass(frozen=True)
class Shot:
    """A page and the text by which it is known to be there."""

    page: str
    shows: str | None
    size: tuple[int, int]
    prepare: Callable[[MlflowUi], None] = lambda ui: None
    """What the visitor does there."""


def shots_of(url: str, experiment: str, model: str) -> dict[str, Shot]:
    """Choose the pages of the docs from what a store holds.

    Raises
    ------
    click.ClickException
        If the experiment has no finished run with scores, or nobody registered the model.
    """
    client = mlflow.MlflowClient(url)
    found = client.get_experiment_by_name(experiment)
    runs = found and client.search_runs(
        [found.experiment_id],
        filter_string=f"metrics.`{SCORE}` >= 0 and attributes.status = 'FINISHED'",
        order_by=[f"metrics.`{SCORE}` DESC"],
    )
    if not runs:
        raise click.ClickException(f"--experiment {experiment}: no finished run has {SCORE}")
    if not client.search_registered_models(filter_string=f"name = '{model}'"):
        raise click.ClickException(f"--registered-model {model}: no such model in this store")
    mlflow.set_tracking_uri(url)
    offer_view(found.experiment_id)  # experiments of earlier versions lack it
    links = view_links("", found.experiment_id)
    table, charts = (links[what].removeprefix("/#/") for what in ("table", "charts"))
    home = f"experiments/{found.experiment_id}/runs"
    best = runs[0]
    other = next((r for r in runs if _strategy(r) != _strategy(best)), best)
    shots = {
        "ui_experiment": Shot(table, best.info.run_name, (WIDTH, 700)),
        "ui_strategies": Shot(
            table, best.info.run_name, (WIDTH, 760), lambda ui: ui.group_by("strategy")
        ),
        "ui_compare": Shot(
            charts,
            FIGURES[0],
            (WIDTH, 1100),
            lambda ui: ui.search_runs([best.info.run_id, other.info.run_id]),
        ),
        "ui_run": Shot(f"{home}/{best.info.run_id}", "About this run", (WIDTH, 1000)),
        "ui_model": Shot(f"models/{model}", "@ champion", (WIDTH, 800)),
    }
    if parent := best.data.tags.get(PARENT):
        shots["ui_parent"] = Shot(f"{home}/{parent}", "Child runs", (WIDTH, 1000))
    return shots


def _strategy(run: Run) -> str:
    return str(run.data.params.get("strategy"))


def take(browser: Browser, url: str, shot: Shot, out: Path) -> None:
    """Draw one page into a PNG."""
    with visit(browser, url, size=shot.size) as ui:
        ui.open(shot.page, shows=shot.shows)
        shot.prepare(ui)
        ui.page.screenshot(path=out, animations="disabled")
    with Image.open(out) as picture:
        picture.convert("RGB").save(out, optimize=True)
    click.echo(f"{out}: {out.stat().st_size:,} bytes")


@click.command()
@click.option("--store", default="sqlite:///mlflow.db", show_default=True)
@click.option("--page", help="What comes after #/ in the UI's address.")
@click.option("--shows", help="Text to wait for on that page.")
@click.option("--all", "everything", is_flag=True, help="All pictures of the docs; OUT: a folder.")
@click.option("--experiment", default="chest-xray", show_default=True, help="For --all.")
@click.option("--registered-model", default="cxr-classifier", show_default=True, help="For --all.")
@click.option(
    "--size", type=Size(), default="1440,1000", show_default=True, help="For --page, pixels."
)
@click.argument("out", type=click.Path(path_type=Path))
def main(
    store: str,
    page: str | None,
    shows: str | None,
    everything: bool,
    experiment: str,
    registered_model: str,
    size: tuple[int, int],
    out: Path,
) -> None:
    """Draw pages of the MLflow UI into PNG files."""
    if everything == (page is not None):
        raise click.UsageError("give either --page or --all")
    executable = find_browser()
    if not executable:
        raise click.ClickException("no Chromium here: install it (Debian: apt install chromium)")
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_mlflow(store, Path(folder)) as url,
    ):
        if page is not None:
            wanted = {out: Shot(page, shows, size)}
        else:
            found = shots_of(url, experiment, registered_model)
            wanted = {out / f"{name}.png": shot for name, shot in found.items()}
        with open_browser(executable) as browser:
            for path, shot in wanted.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                take(browser, url, shot, path)


if __name__ == "__main__":
    main()
