"""Under random and mutated requests a real server never fails, tells of its inside, or grows."""

from __future__ import annotations

import hypothesis
import psutil
import pytest
from hypothesis import strategies as st

from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.serving.http_refusals import Refused
from cxr_mlflow.serving.http_scoring import Deadline, answer
from cxr_mlflow.serving.scorer import Scorer
from tools.cxr_server import ask, film, served_process, split
from tools.http_fuzz import Findings, bodies, check, fuzz

EXAMPLES = 200
GROWTH = 60e6
"""Bytes that the first hundreds of requests may add: libraries load late, allocators keep some."""


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata, and goes on
def test_any_body_is_answered_or_refused(brightness_model):
    scorers = [Scorer.load(brightness_model(mode)) for mode in ("none", "lungs-crop")]
    answered: list[int] = []
    refused: list[Refused] = []

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(bodies(), st.sampled_from(scorers))
    def send(body: bytes, scorer: Scorer) -> None:
        try:
            found = answer(scorer, lambda: bytearray(body), ServeConfig(), Deadline(60))
        except Refused as error:
            refused.append(error)
        else:
            answered.append(len(found.labels))

    send()
    assert {error.status // 100 for error in refused} == {4}
    assert all(error.content("id").count(b"\n") == 1 for error in refused)
    assert max(answered) == 2  # good ones are among them


@pytest.mark.slow
def test_a_real_server_under_fuzz(brightness_model, tmp_path):
    log = tmp_path / "server.log"
    with served_process(brightness_model(), log) as server:
        process = psutil.Process(server.process.pid)
        content = split({"image": [film(20)], "mask": [None]})
        expected = ask(server.port, content)
        before = process.memory_info().rss
        findings = fuzz(server.port, EXAMPLES, patience=0.1)
        assert findings.statuses[200] > EXAMPLES / 10
        assert findings.statuses[400] > EXAMPLES / 10
        assert ask(server.port, content)[:2] == expected[:2]
        assert process.memory_info().rss - before < GROWTH
        assert server.stop() == 0
    text = log.read_text()
    assert "Traceback" not in text
    assert "unexpected error" not in text


def test_the_check_of_answers_finds_what_must_not_be():
    for bad in (
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 400 Bad\r\nContent-Length: 14\r\n\r\n{"detail": 1}\n',
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nTraceback (most recent call last)",
    ):
        with pytest.raises(AssertionError):
            check(bad, Findings())
