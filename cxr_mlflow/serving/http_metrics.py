"""What the HTTP server counts, for Prometheus; a registry of its own for each server."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server.

    Parameters
    ----------
    model : mapping of str to str
        Labels of `cxr_model_info`: which model answers.
    inside, buffered : callable
        Requests that are scored or wait; bytes of bodies that are held.
    """

    def __init__(
        self,
        model: Mapping[str, str],
        *,
        inside: Callable[[], float],
        buffered: Callable[[], float],
    ) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("cxr_model", "The model that answers.", registry=registry).info(dict(model))
        self._requests = Counter(
            "cxr_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "cxr_request_seconds",
            "From the request's headers to the end of the answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._images = Histogram(
            "cxr_request_images",
            "Images in a request that was scored.",
            buckets=BATCHES,
            registry=registry,
        )
        self._labels = Counter(
            "cxr_predictions", "Images labelled, by label.", ["label"], registry=registry
        )
        self._abstained = Counter(
            "cxr_abstentions", "Images whose label is not to be relied on.", registry=registry
        )
        Gauge(
            "cxr_scoring_requests", "Requests that are scored or wait.", registry=registry
        ).set_function(inside)
        Gauge(
            "cxr_buffered_bytes", "Bytes of request bodies held.", registry=registry
        ).set_function(buffered)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer; `route` is one of the server's own paths, or `other`."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_predictions(self, labels: list[str], abstained: int) -> None:
        """Count labels: a change of their shares is the first sign that the films changed."""
        self._images.observe(len(labels))
        for label in labels:
            self._labels.labels(label).inc()
        self._abstained.inc(abstained)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
