"""The tracking server dies, comes back, hangs and errs: all arrives once, with its own time."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import psutil
import pytest
from matplotlib.figure import Figure
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from cxr_mlflow.errors import InputError
from cxr_mlflow.stopping import Terminated
from cxr_mlflow.tracking import delivery as delivery_module
from cxr_mlflow.tracking.delivery import Delivery
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.journaled import open_journaled
from tools.mlflow_server import free_port, serve_mlflow

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(delivery_module, "LONGEST_PAUSE", 1.0)
    monkeypatch.setitem(delivery_module.REQUEST, "MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    for name in delivery_module.REQUEST:
        monkeypatch.delenv(name, raising=False)


def open_run(journal, params=None, **tags):
    return open_journaled(journal, "j1", "lab", "a run", tags, params or {"lr": "0.1"}, handlers={})


def tell(run, epochs):
    for epoch in epochs:
        run.log_metrics({"val/loss": 1 / epoch, "val/f1": 0.5}, step=epoch)
        run.log_text(f"after epoch {epoch}", "note.md")


def the_run(uri):
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("lab").experiment_id])
    return client, run


def check(uri, journal, epochs):
    """All the journal holds is at MLflow: once, and as measured then."""
    client, run = the_run(uri)
    history = client.get_metric_history(run.info.run_id, "val/loss")
    times = [r.time for r in journal if r.verb == "metrics" and "val/loss" in r.told["metrics"]]
    assert [(m.step, m.value) for m in history] == [(e, 1 / e) for e in epochs]
    assert [m.timestamp for m in history] == times
    assert run.data.params["lr"] == "0.1"
    path = client.download_artifacts(run.info.run_id, "note.md")
    with open(path) as file:
        assert file.read() == f"after epoch {epochs[-1]}"
    return run


@pytest.fixture
def store(tmp_path, empty_store):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "mlflow.db").write_bytes(empty_store.read_bytes())
    return tmp_path / "server"


def test_the_users_variables_are_theirs_again(tmp_path, tracking, monkeypatch):
    """A notebook's own calls of MLflow must not give up after one try because we trained there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = {n: v for n, v in os.environ.items() if not n.startswith("_MLFLOW")}  # its own
    with open_run(Journal(tmp_path / "journal")) as run:
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        tell(run, [1])
    assert {name: os.environ.get(name) for name in (*before, *delivery_module.REQUEST)} == {
        name: before.get(name) for name in (*before, *delivery_module.REQUEST)
    }


def serve(store, port):
    return serve_mlflow(f"sqlite:///{store / 'mlflow.db'}", store, port=port)


def test_a_server_that_dies_in_the_middle_and_comes_back(tmp_path, store):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    mlflow.set_tracking_uri(uri)
    journal = Journal(tmp_path / "journal")
    with serve(store, port):
        context = open_run(journal)
        run = context.__enter__()
        tell(run, [1, 2])
        assert run.delivery.wait(seconds=20)
    tell(run, range(3, 40))  # nobody answers, and nobody waits
    assert not run.is_delivered
    with serve(store, port):
        context.__exit__(None, None, None)
        assert run.is_delivered
        assert check(uri, journal, range(1, 40)).info.status == "FINISHED"


def test_stopped_while_the_server_is_slow_it_ends_as_killed(tmp_path, store):
    port = free_port()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
    with serve(store, port):
        server = psutil.Process().children(recursive=True)
        go_on = threading.Timer(8, lambda: [process.resume() for process in server])
        with suppress(KeyboardInterrupt), open_run(Journal(tmp_path / "journal")) as run:
            assert run.delivery.wait(seconds=20)
            for process in server:
                process.suspend()
            go_on.start()
            tell(run, [1])
            raise KeyboardInterrupt
        go_on.join()
        _, found = the_run(f"http://127.0.0.1:{port}")
        assert (found.info.status, found.data.tags["failure"]) == ("KILLED", "KeyboardInterrupt")


def test_a_server_that_is_back_at_the_end_is_not_left_out_for_a_pause(tmp_path, store, monkeypatch):
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.FIRST_CONTACT_SECONDS", 1.0)
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.LAST_SECONDS", 10.0)
    monkeypatch.setattr(delivery_module, "FIRST_PAUSE", 300.0)
    port = free_port()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
    with ExitStack() as server:
        with open_run(Journal(tmp_path / "journal")) as run:
            assert run.delivery.trouble
            server.enter_context(serve(store, port))
        assert run.is_delivered


def test_down_at_the_start_and_never_back_it_is_sent_later(tmp_path, store, monkeypatch):
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.FIRST_CONTACT_SECONDS", 1.0)
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.LAST_SECONDS", 1.0)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    mlflow.set_tracking_uri(uri)
    journal = Journal(tmp_path / "journal")
    figure = Figure()
    with open_run(journal) as run:
        assert run.run_id == "not known yet"
        tell(run, [1, 2, 3])
        run.log_comparable(figure, "curves")
    assert not run.is_delivered
    assert run.delivery.trouble
    with serve(store, port):
        Delivery(Journal(tmp_path / "journal"), {}).deliver()
        found = check(uri, journal, [1, 2, 3])
        assert found.info.status == "FINISHED"
        assert found.info.run_name == "a run"
        opened, *_, ended = journal
        assert (found.info.start_time, found.info.end_time) == (opened.time, ended.time)


def test_sent_twice_it_is_there_once(tmp_path, tracking):
    """A process may die between MLflow's answer and its note of it, at any record."""
    journal = Journal(tmp_path / "journal")
    figure = Figure()
    figure.subplots()
    with open_run(journal) as run:
        tell(run, [1, 2, 3])
        run.log_comparable(figure, "curves")
        run.set_tags({"a": "b"})
    for already in range(len(journal)):
        journal.sent = already
        Delivery(journal, {}).deliver()
    found = check(tracking, journal, [1, 2, 3])
    client, _ = the_run(tracking)
    assert len(client.list_artifacts(found.info.run_id, "images")) == 2  # the picture, and small
    assert found.info.status == "FINISHED"


def test_a_run_that_was_deleted_is_told_anew(tmp_path, tracking):
    journal = Journal(tmp_path / "journal")
    with open_run(journal) as run:
        tell(run, [1, 2])
    client, first = the_run(tracking)
    client.delete_run(first.info.run_id)
    with open_run(Journal(tmp_path / "journal")) as run:
        tell(run, [2, 3])
    _, second = the_run(tracking)
    assert second.info.run_id != first.info.run_id
    check(tracking, Journal(tmp_path / "journal"), [1, 2, 3])


def test_an_interrupted_run_is_running_again_and_forgets_its_failure(tmp_path, tracking):
    with suppress(KeyboardInterrupt), open_run(Journal(tmp_path / "journal")):
        raise KeyboardInterrupt
    _, found = the_run(tracking)
    assert (found.info.status, found.data.tags["failure"]) == ("KILLED", "KeyboardInterrupt")
    with open_run(Journal(tmp_path / "journal")) as run:
        assert run.delivery.wait(seconds=10)
        _, found = the_run(tracking)
        assert found.info.status == "RUNNING"
        assert "failure" not in found.data.tags
    _, found = the_run(tracking)
    assert found.info.status == "FINISHED"


def test_an_error_is_told_as_failed_with_its_reason(tmp_path, tracking):
    with pytest.raises(ZeroDivisionError), open_run(Journal(tmp_path / "journal")):
        raise ZeroDivisionError("nothing to divide")
    _, found = the_run(tracking)
    assert found.info.status == "FAILED"
    assert found.data.tags["failure"] == "ZeroDivisionError: nothing to divide"


def send(number):
    os.kill(os.getpid(), number)


def open_slow(folder, seconds):
    """A run with a verb that takes long."""
    slow = {"slow": lambda remote, record: time.sleep(seconds)}
    journal = Journal(folder / "journal")
    return open_journaled(journal, "j1", "lab", "a run", {}, {}, handlers=slow)


@pytest.mark.parametrize("patience", [20.0, 0.5])
def test_a_second_signal_does_not_break_off_the_closing(
    tmp_path, tracking, monkeypatch, hears_ctrl_c, patience
):
    """Nor does a record that is long under way: then the status is told past it."""
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.LAST_SECONDS_KILLED", patience)

    def live():
        with open_slow(tmp_path, 1.5) as run:
            run.once("slow", "slow", {})
            threading.Timer(0.1, send, [signal.SIGTERM]).start()
            threading.Timer(0.2, send, [signal.SIGINT]).start()
            send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        live()
    _, found = the_run(tracking)
    assert (found.info.status, found.data.tags["failure"]) == ("KILLED", "KeyboardInterrupt")
    assert [record.verb for record in Journal(tmp_path / "journal")][-1] == "end"


def test_a_signal_in_the_first_words_closes_the_run(tmp_path, tracking, monkeypatch):
    client = mlflow.MlflowClient()
    joined = client.create_run(client.create_experiment("lab")).info.run_id
    append = Journal.append

    def interrupted(journal, verb, told):
        record = append(journal, verb, told)
        if verb == "open":
            send(signal.SIGTERM)
        return record

    monkeypatch.setattr(Journal, "append", interrupted)
    with pytest.raises(Terminated), open_run(Journal(tmp_path / "journal")):
        pytest.fail("it was opened all the same")
    assert [record.verb for record in Journal(tmp_path / "journal")] == ["open", "end"]
    assert client.get_run(joined).info.status == "RUNNING", "nothing was sent yet"


def test_a_signal_while_a_finished_run_waits_for_mlflow_shortens_the_waiting(
    tmp_path, tracking, monkeypatch
):
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.LAST_SECONDS_KILLED", 0.1)

    def live():
        with open_slow(tmp_path, 10) as run:
            run.once("slow", "slow", {})
            threading.Timer(0.3, send, [signal.SIGTERM]).start()

    begin = time.monotonic()
    with pytest.raises(Terminated):
        live()
    assert time.monotonic() - begin < 8
    end = list(Journal(tmp_path / "journal"))[-1]
    assert (end.verb, end.told["status"]) == ("end", "FINISHED"), "it is sent later"


def test_what_mlflow_run_says_otherwise_is_refused_at_once(tmp_path, tracking, monkeypatch):
    client = mlflow.MlflowClient()
    joined = client.create_run(client.create_experiment("lab")).info.run_id
    client.log_param(joined, "lr", "0.5")
    monkeypatch.setenv("MLFLOW_RUN_ID", joined)
    with pytest.raises(InputError, match=r"the run says lr=0\.5, the command line 0\.1"):
        open_run(Journal(tmp_path / "journal")).__enter__()


def test_the_run_of_a_second_mlflow_run_is_closed_with_a_link(tmp_path, tracking, monkeypatch):
    with suppress(KeyboardInterrupt), open_run(Journal(tmp_path / "journal")) as run:
        raise KeyboardInterrupt
    first = run.run_id
    client = mlflow.MlflowClient()
    home = client.get_run(first).info.experiment_id
    joined = client.create_run(home).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", joined)
    with open_run(Journal(tmp_path / "journal")) as run:
        assert run.run_id == first
    other = client.get_run(joined)
    assert other.info.status == "FINISHED"
    assert other.data.tags["continued_in"] == first
    assert first in other.data.tags["mlflow.note.content"]
    assert other.info.run_name == "a run (continued)"


def test_joined_runs_that_were_deleted_or_purged_are_told_anew(tmp_path, tracking, monkeypatch):
    """`mlflow run` opens a run for every attempt; the newest one that is there gets everything."""
    client = mlflow.MlflowClient()
    home = client.create_experiment("lab")
    for step, fate in enumerate(("deleted", "purged", "kept")):
        joined = client.create_run(home).info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", joined)
        with suppress(KeyboardInterrupt), open_run(Journal(tmp_path / "journal")) as run:
            assert run.delivery.wait(seconds=20)
            assert run.run_id == joined
            run.log_metrics({"val/loss": 1.0}, step=step)
            raise KeyboardInterrupt
        assert run.is_delivered, run.delivery.refusal or run.delivery.trouble
        if fate != "kept":
            client.delete_run(joined)
        if fate == "purged":
            client._tracking_client.store._hard_delete_run(joined)
    assert [m.step for m in client.get_metric_history(joined, "val/loss")] == [0, 1, 2]


def refuses(remote, record):
    raise mlflow.exceptions.MlflowException("not this", INVALID_PARAMETER_VALUE)


def lacks(remote, record):
    raise ModuleNotFoundError("No module named 'boto3'")


def stumbles(remote, record):
    raise KeyError("model_uri")


@pytest.mark.parametrize("handler", [refuses, lacks, stumbles])
def test_what_is_refused_is_skipped_and_kept_and_the_run_does_not_stay_open(
    tmp_path, tracking, handler
):
    journal = Journal(tmp_path / "journal")
    with open_journaled(journal, "j1", "lab", "a run", {}, {}, handlers={"odd": handler}) as run:
        run.once("odd", "odd", {})
        tell(run, [1])
    assert not run.is_delivered
    _, found = the_run(tracking)
    assert found.info.status == "FAILED"
    assert found.data.tags["failure"].startswith("not accepted: odd: ")
    assert found.data.metrics["val/loss"] == 1.0, "what came behind it has arrived"

    with pytest.raises(type(run.delivery.refusal)):  # `cxr sync`, and it is as before
        Delivery(Journal(tmp_path / "journal"), {"odd": handler}).deliver()
    assert the_run(tracking)[1].info.status == "FAILED"
    Delivery(Journal(tmp_path / "journal"), {"odd": lambda remote, record: None}).deliver()
    assert Journal(tmp_path / "journal").all_sent
    _, found = the_run(tracking)
    assert found.info.status == "FINISHED"
    assert "failure" not in found.data.tags


def slow(remote, record):
    time.sleep(0.3)


@pytest.fixture
def backlog(tmp_path):
    """A journal that holds 12 s of what an earlier attempt told and MLflow has not heard."""
    journal = Journal(tmp_path / "journal")
    for number in range(40):
        journal.append("slow", {"number": number})
    return journal


def test_the_start_waits_no_longer_than_it_says_though_all_the_time_something_moves(
    backlog, tracking, monkeypatch
):
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.FIRST_CONTACT_SECONDS", 1.0)
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.LAST_SECONDS_KILLED", 1.0)
    begin = time.monotonic()
    told = {"slow": slow}
    with (
        suppress(KeyboardInterrupt),
        open_journaled(backlog, "j1", "lab", "a run", {}, {}, handlers=told),
    ):
        started = time.monotonic() - begin
        begin = time.monotonic()
        raise KeyboardInterrupt
    assert started < 6
    assert time.monotonic() - begin < 6, "nor does the end, when it was asked to stop"


@contextmanager
def ill_server(answer):
    """A server that takes every request and gives a bad answer, or none."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def errs(request):
    request.send_error(500)


def hangs(request):
    time.sleep(30)


def talks_nonsense(request):
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b"<html>a login page</html>")


@pytest.mark.parametrize("answer", [errs, hangs, talks_nonsense])
def test_a_server_that_is_ill_does_not_hold_the_training_up(tmp_path, answer, monkeypatch):
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.FIRST_CONTACT_SECONDS", 1.0)
    monkeypatch.setattr("cxr_mlflow.tracking.journaled.LAST_SECONDS", 1.0)
    with ill_server(answer) as uri:
        mlflow.set_tracking_uri(uri)
        journal = Journal(tmp_path / "journal")
        begin = time.monotonic()
        with open_run(journal) as run:
            tell(run, range(1, 30))
        assert time.monotonic() - begin < 60  # one request that is waited for takes 30
        assert not run.is_delivered
        assert run.delivery.refusal is None
        assert len([r for r in journal if r.verb == "metrics"]) >= 29
