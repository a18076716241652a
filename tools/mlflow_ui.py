"""The MLflow UI in a headless Chromium of this machine, for the tests and for pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, Request, sync_playwright

BROWSERS = ("chromium", "google-chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # workers too, unlike `route`
)
SETTINGS = {  # of a visitor who chose "Model training" and closed the assistant
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.settings.telemetry.enabled_v1": "false",
}
PLAIN = {"mlflow.settings.telemetry.enabled_v1": "false"}
"""Of an empty browser, but for messages to a place that cannot be reached."""
STORE_SETTINGS = "for (const [k, v] of Object.entries({})) localStorage.setItem(k, v)"
SECONDS = 300  # longest wait: a first page can take minutes on two busy cores
IMAGES_ARE_THERE = (
    "() => [...document.images].every(image => image.complete && image.naturalWidth > 0)"
)


def find_browser() -> str | None:
    """Return the path of this machine's Chromium; None if it has none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def open_browser(executable: str) -> Iterator[Browser]:
    """Run a headless Chromium that reaches this machine only.

    Parameters
    ----------
    executable : str
        As `find_browser` returns it; no browser is ever downloaded.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=ARGUMENTS, timeout=SECONDS * 1000
        )
        try:
            yield browser
        finally:
            browser.close()


class MlflowUi:
    """One visitor of an MLflow server; made by `visit`."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.strangers: list[str] = []
        """Addresses outside this machine that the page asked for; it got none of them."""
        page.context.on("request", self._note_stranger)

    def _note_stranger(self, request: Request) -> None:
        if urlsplit(request.url).hostname not in ("127.0.0.1", None):
            self.strangers.append(request.url)

    def open(self, path: str, *, shows: str | None = None) -> None:
        """Open a page and wait until it is drawn.

        Parameters
        ----------
        path : str
            What comes after #/ in the address.
        shows : str, optional
            Text that is there when the page is.
        """
        self.page.goto("about:blank")  # a new path after # alone would not load anything
        self.page.goto(f"{self.url}/#/{path}")
        if shows is not None:
            self.text(shows).wait_for()
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is loading and all pictures are there."""
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_function(IMAGES_ARE_THERE, polling=500)

    def text(self, told: str) -> Locator:
        """Return the first visible element with exactly this text."""
        return self.page.get_by_text(told, exact=True).locator("visible=true").first

    def toggle_columns(self, names: Sequence[str]) -> None:
        """Show or hide columns of the table of runs: metrics, parameters, tags, attributes."""
        self._menu("Columns").click()
        for name in names:
            box = f"[class*='tree-checkbox']:has(+ [title='{name}'])"
            self.page.locator(box).first.click()
        self.page.keyboard.press("Escape")
        self.settle()

    def group_by(self, tag: str) -> None:
        """Group the table of runs by a tag."""
        self._menu("Group by").click()
        self.page.get_by_role("menuitemcheckbox", name=tag, exact=True).first.click()
        self.page.keyboard.press("Escape")
        self.settle()

    def search_runs(self, run_ids: Sequence[str]) -> None:
        """Leave only these runs in the table and the charts."""
        told = ", ".join(f"'{run_id}'" for run_id in run_ids)
        box = self.page.get_by_placeholder("metrics.rmse < 1 and params.model").first
        box.fill(f"attributes.run_id IN ({told})")
        box.press("Enter")
        self.text(f"{len(run_ids)} matching runs").wait_for()
        self.settle()

    def find_charts(self, told: str) -> None:
        """Leave only the charts whose names match."""
        self.page.get_by_placeholder("Search metric charts").fill(told)
        self.settle()

    def pictures(self, path: str) -> Locator:
        """Return the pictures whose address has this in it."""
        return self.page.locator(f"img[src*='{path}']")

    def _menu(self, name: str) -> Locator:
        return self.page.get_by_test_id("column-selection-dropdown").filter(has_text=name)


@contextmanager
def visit(
    browser: Browser,
    url: str,
    *,
    size: tuple[int, int] = (1600, 1200),
    settings: Mapping[str, str] = SETTINGS,
) -> Iterator[MlflowUi]:
    """Be a new visitor of an MLflow server.

    Parameters
    ----------
    browser : Browser
        Of `open_browser`.
    url : str
        Address of the server.
    size : pair of int
        Width and height of the window, pixels.
    settings : mapping, optional
        What the UI has kept in the browser; by default that of a visitor who knows it, with
        `PLAIN` an empty browser.
    """
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height})
    try:
        context.set_default_timeout(SECONDS * 1000)
        context.add_init_script(STORE_SETTINGS.format(json.dumps(dict(settings))))
        yield MlflowUi(context.new_page(), url)
    finally:
        context.close()
