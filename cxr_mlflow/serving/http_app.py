"""The routes of `cxr serve`: the contract of MLflow's scoring server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.serving.http_body import JSON, HeldBodies, check_headers, until_gone
from cxr_mlflow.serving.http_guard import CLIENT_LEFT, ROUTES, Guard
from cxr_mlflow.serving.http_metrics import CONTENT_TYPE, Metrics
from cxr_mlflow.serving.http_refusals import ClientGone, Refused, busy, error_json
from cxr_mlflow.serving.http_scoring import Workers, answer
from cxr_mlflow.serving.scorer import Scorer


def create_app(
    scorer: Scorer,
    config: ServeConfig,
    about: Mapping[str, Any],
    *,
    token: str | None,
    pool: Workers,
) -> ASGIApp:
    """Build the application.

    Parameters
    ----------
    scorer : Scorer
    config : ServeConfig
        Its limits.
    about : mapping
        What `/version` tells; its `model` maps texts to texts.
    token : str, optional
        What clients must send.
    pool : Workers
        Scores the images; told to stop when the server does.

    Returns
    -------
    ASGI application
    """
    held = HeldBodies(config)
    metrics = Metrics(about["model"], inside=lambda: pool.inside, buffered=lambda: held.bytes)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.stop()

    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan
    )
    app.add_exception_handler(Refused, _tell_refusal)
    app.add_exception_handler(ClientGone, _tell_nobody)
    app.add_exception_handler(HTTPException, _tell_wrong_route)
    app.add_exception_handler(Exception, _tell_defect)

    @app.get("/ping")
    async def ping() -> Response:
        """Whether the process lives."""
        return Response(b"\n", media_type=JSON)

    @app.get("/health")
    async def health() -> Response:
        """Whether it takes another request."""
        if pool.is_full:
            raise busy("the queue is full")
        return Response(b"\n", media_type=JSON)

    @app.get("/version")
    async def version() -> Response:
        """Which model answers, and what readers of its answers must know."""
        return Response(json.dumps(about), media_type=JSON)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        """Label images."""
        check_headers(request.headers)
        body = await held.read(request)
        gone = asyncio.ensure_future(until_gone(request))
        try:
            found = await pool.run(
                lambda deadline: answer(scorer, body.take, config, deadline),
                config.request_timeout,
                gone,
                at_end=body.let_go,
            )
        finally:
            gone.cancel()
        metrics.count_predictions(found.labels, found.abstained)
        return Response(found.content, media_type=JSON)

    return Guard(app, metrics, token=token, open_metrics=config.open_metrics)


async def _tell_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    content = error.content(request.state.request_id)
    return Response(content, error.status, error.headers, JSON)


async def _tell_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _tell_wrong_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    message = f"use {allowed}" if allowed else f"nothing is here; there are {', '.join(ROUTES)}"
    content = error_json(message, request_id=request.state.request_id)
    return Response(content, error.status_code, error.headers, JSON)


async def _tell_defect(request: Request, error: Exception) -> Response:
    message = "unexpected error; the server's log tells more under this id"
    return Response(error_json(message, request_id=request.state.request_id), 500, None, JSON)
