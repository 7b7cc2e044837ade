"""A Flask test client around a fake engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from flask.testing import FlaskClient

from serving.api.app import create_app
from serving.config import HttpConfig, LimitsConfig, ServerConfig, Stage
from tests.api.fake_engine import FakeEngine, FakeText, Script


@dataclass
class Front:
    client: FlaskClient
    engine: FakeEngine
    stage: Stage

    def error(self, body: object, *, path: str = "/generate", status: int = 422) -> str:
        """The error text of a refused request, its shape and status checked."""
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.get_data(as_text=True)
        assert response.content_type == "application/json"
        answer = msgspec.json.decode(response.data, type=dict[str, str])
        assert set(answer) == {"error", "error_type", "request_id"}
        assert status != 422 or answer["error_type"] == "validation"
        return answer["error"]


FrontFactory = Callable[..., Front]


@pytest.fixture
def new_front() -> FrontFactory:
    def make(
        script: Script | None = None, *, limits: LimitsConfig | None = None, http: HttpConfig | None = None
    ) -> Front:
        engine = FakeEngine(script)
        config = ServerConfig(limits=limits or LimitsConfig(), http=http or HttpConfig())
        front = Front(client=None, engine=engine, stage=Stage(stage="ready"))  # type: ignore[arg-type]
        text = FakeText()
        front.client = create_app(engine, lambda: text, config, lambda: front.stage).test_client()
        return front

    return make


@pytest.fixture
def front(new_front: FrontFactory) -> Front:
    return new_front()
