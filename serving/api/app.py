"""The front as one Flask app, built from an engine client, a tokenizer and a configuration. Composition only:
it starts nothing and reads nothing, so tests build it around a fake engine.
"""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask

from serving.api import access, auth, cors, error_handlers, json_lines, request_id
from serving.api.connection import ConnectionMiddleware
from serving.api.context import EXTENSION, ApiContext
from serving.api.handler_client import HandlerClient
from serving.api.json_body import BodyReader
from serving.api.readiness import Readiness, TextProvider
from serving.api.roles import EngineClient
from serving.api.routes import (
    adapters,
    bidirectional,
    chat,
    completions,
    docs,
    execution_parameters,
    generate,
    health,
    info,
    invocations,
    models,
    responses,
    tokenize,
)
from serving.api.routes import metrics as metrics_page
from serving.api.start_gate import NUM_SPELLING, StartGate
from serving.config import ServerConfig, Stage
from serving.metrics import ServerMetrics
from serving.tracing import Tracing

_ROUTES = (
    health,
    generate,
    invocations,
    bidirectional,
    execution_parameters,
    adapters,
    info,
    metrics_page,
    tokenize,
    chat,
    completions,
    models,
    responses,
)
_BUFFERED_BODIES = 8
"""Unfinished bodies of one worker may together hold this many times the largest one."""


def create_app(
    engine: EngineClient,
    text: TextProvider,
    config: ServerConfig,
    stage: Callable[[], Stage],
    *,
    metrics: ServerMetrics | None = None,
    tracing: Tracing | None = None,
    handler: Callable[[], HandlerClient | None] = lambda: None,
    connect_wait_s: float = 0.0,
) -> Flask:
    """`text` returns None until the engine's model folder is known and its tokenizer read; a request waits up to
    `connect_wait_s` for that once the engine is ready."""
    app = Flask("serving", static_folder=None)
    metrics = metrics or ServerMetrics()
    app.url_map.merge_slashes = False  # `/v1//models` is a path of its own, and no redirect
    limit_bytes = config.limits.payload_limit_bytes
    app.extensions[EXTENSION] = ApiContext(
        config=config,
        engine=engine,
        readiness=Readiness(
            engine=engine,
            text=text,
            stage=stage,
            declared=config.limits,
            connect_wait_s=connect_wait_s,
        ),
        bodies=BodyReader(
            limit_bytes=limit_bytes,
            timeout_s=config.http.body_timeout_s,
            buffer_limit_bytes=_BUFFERED_BODIES * limit_bytes,
        ),
        metrics=metrics,
        start_gate=StartGate(),
        spell_gate=StartGate(NUM_SPELLING),
        handler=handler,
        line_places=json_lines.places(config),
    )
    access.register(app, metrics, tracing)
    error_handlers.register(app)
    request_id.register(app)
    cors.register(app, config.http)
    auth.register(app, config.http)
    for routes in _ROUTES:
        app.register_blueprint(routes.blueprint)
    app.register_blueprint(docs.blueprint_for(config))
    # The way Flask documents for WSGI middleware; its attribute is declared as a method.
    app.wsgi_app = ConnectionMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    return app
