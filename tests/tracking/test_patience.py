"""What MLflow does not take now is kept, in order, and said once."""

from __future__ import annotations

import pytest

from cxr_mlflow.tracking import patience
from cxr_mlflow.tracking.patience import Backlog, NoAnswer, ask


@pytest.fixture
def server(monkeypatch):
    """A server that may be down: what it took, and whether it answers."""

    class Server:
        up = True

        def __init__(self) -> None:
            self.took: list[str] = []

        def tell(self, word: str):
            def call() -> None:
                if not self.up:
                    raise ConnectionError("NewConnectionError: refused")
                if word == "bad":
                    raise ValueError("no such thing")
                self.took.append(word)

            return call

    server = Server()
    monkeypatch.setattr(patience, "trouble", lambda: "" if server.up else "no connection")
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)
    return server


def test_what_is_not_taken_is_kept_and_told_in_order(server):
    said: list[str] = []
    backlog = Backlog(said.append)
    for word in ("a", "b", "c", "d"):
        server.up = word not in "bc"
        backlog.tell(server.tell(word))
    assert server.took == ["a", "b", "c", "d"]
    assert len(said) == 1
    assert "no connection. Training goes on" in said[0]


def test_in_the_end_no_answer_is_told_from_a_refusal(server):
    backlog = Backlog(lambda line: None)
    server.up = False
    backlog.tell(server.tell("a"))
    with pytest.raises(NoAnswer, match="no connection"):
        backlog.finish(seconds=0.05)
    server.up = True
    backlog.finish(seconds=0.05)
    assert server.took == ["a"]
    backlog.tell(server.tell("bad"))
    with pytest.raises(ValueError, match="no such thing"):
        backlog.finish(seconds=0.05)


def test_a_call_fails_as_its_own_or_for_want_of_an_answer(server):
    with pytest.raises(ValueError, match="no such thing"):
        ask(server.tell("bad"))
    server.up = False
    with pytest.raises(NoAnswer):
        ask(server.tell("bad"))
