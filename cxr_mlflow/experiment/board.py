"""The whole matrix at a glance: a table that lives on a terminal, a line per event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cxr_mlflow.experiment.plan import Cell, Plan
from cxr_mlflow.pipeline import SENDING, TESTING

DONE, RUNNING, FAILED, WAITING, ELSEWHERE = "done", "running", "failed", "waiting", "elsewhere"
STYLES = {DONE: "green", RUNNING: "cyan", FAILED: "bold red", WAITING: "dim", ELSEWHERE: "magenta"}


@dataclass
class Place:
    """Where a cell stands."""

    state: str = WAITING
    text: str = "·"
    reason: str = ""
    minutes: float | None = None


@dataclass
class Board:
    """Keeps where every cell stands, and shows it.

    Parameters
    ----------
    plan : Plan
    jobs : int
        Cells trained at a time, for the time left.
    """

    plan: Plan
    jobs: int = 1
    console: Console = field(
        default_factory=lambda: Console(file=sys.stderr, highlight=False, soft_wrap=True)
    )
    places: dict[Cell, Place] = field(init=False)
    live: Live | None = None

    def __post_init__(self) -> None:
        self.places = {cell: Place() for cell in self.plan.cells}
        self.start = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table on the terminal while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self, console=self.console, refresh_per_second=2) as self.live:
            yield
        self.live = None

    def done(
        self,
        cell: Cell,
        f1_macro: float | None,
        minutes: float,
        *,
        now: bool = True,
        sent: bool = True,
    ) -> None:
        """Mark a cell that came to its end.

        Parameters
        ----------
        cell : Cell
        f1_macro : float, optional
            Its score, if it is known.
        minutes : float
            How long it took; 0 if that is not known.
        now : bool
            Whether it did so in this session, and is told.
        sent : bool
            Whether MLflow has all of it.
        """
        text = "done" if f1_macro is None else f"{f1_macro:.3f}"
        self.places[cell] = Place(DONE, text if sent else f"{text}, unsent", minutes=minutes)
        if now:
            told = text if f1_macro is None else f"macro F1 {text}"
            told += f", {minutes:.1f} min" if minutes else ""
            self._tell(cell, told if sent else f"{told}, not sent yet")

    def running(self, cell: Cell, text: str = "started") -> None:
        """Mark a cell that is being trained, and how far it is."""
        if self.places[cell].state != RUNNING:
            self._say(f"  started  {cell.title}")
        self.places[cell] = Place(RUNNING, text)

    def failed(self, cell: Cell, reason: str) -> None:
        """Mark a cell that ended without a result."""
        self.places[cell] = Place(FAILED, "failed", reason)
        self._tell(cell, f"FAILED: {reason}")

    def elsewhere(self, cell: Cell, reason: str) -> None:
        """Mark a cell that another machine trains."""
        self.places[cell] = Place(ELSEWHERE, "elsewhere", reason)
        self._tell(cell, reason)

    def warn(self, line: str) -> None:
        """Say what must not be overlooked."""
        self._say(f"! {line}", style="bold yellow")

    def count(self, *states: str) -> int:
        """Cells in any of some states."""
        return sum(place.state in states for place in self.places.values())

    def minutes_left(self) -> float | None:
        """Minutes until the last cell ends, from the mean of its row, else of all; None before."""
        known = [(c.row, p.minutes) for c, p in self.places.items() if p.minutes]
        if not known:
            return None
        overall = sum(minutes for _, minutes in known) / len(known)
        left = 0.0
        for cell, place in self.places.items():
            if place.state in (WAITING, RUNNING):
                own = [minutes for row, minutes in known if row == cell.row]
                left += sum(own) / len(own) if own else overall
        return left / self.jobs

    def _tell(self, cell: Cell, what: str) -> None:
        number = self.count(DONE, FAILED, ELSEWHERE)
        left = self.minutes_left()
        more = self.count(WAITING, RUNNING)
        after = f"; {more} to go, {_about(left)}" if more and left is not None else ""
        self._say(f"[{number}/{len(self.places)}] {cell.title}: {what}{after}")

    def _say(self, line: str, style: str = "") -> None:
        console = self.live.console if self.live else self.console
        console.print(Text(line, style=style))

    def __rich__(self) -> Group:
        seeds = list(dict.fromkeys(cell.seed for cell in self.plan.cells))
        table = Table(title=f"{self.plan.name}: macro F1 on the test images", title_justify="left")
        table.add_column("row")
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right", min_width=10)
        by_place: Mapping[tuple[str, int], Cell] = {(c.row, c.seed): c for c in self.places}
        for row in self.plan.rows:
            table.add_row(escape(row), *(_text(self.places[by_place[row, s]]) for s in seeds))
        left = self.minutes_left()
        told = f"{self.count(DONE)} of {len(self.places)} done"
        told += f", {self.count(FAILED)} failed" if self.count(FAILED) else ""
        told += f", {(time.monotonic() - self.start) / 60:.0f} min gone"
        told += f", {_about(left)} left" if left else ""
        return Group(Text(told, style="dim"), table)  # a small terminal cuts off the end


def _text(place: Place) -> Text:
    return Text(place.text, style=STYLES[place.state])


def _about(minutes: float) -> str:
    return f"about {minutes:.0f} min" if minutes >= 1 else "under a minute"


def stage(lines: Sequence[str]) -> str | None:
    """How far a training is, from the lines it printed: "epoch 3/10", then what comes behind.

    None before the first epoch has ended.
    """
    for line in reversed(lines):
        words = line.split()
        if len(words) > 1 and words[0] == "epoch":
            return f"epoch {words[1]}"
        if words and words[0] in (TESTING, SENDING):
            return words[0]
    return None
