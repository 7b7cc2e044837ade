"""The OpenAPI document: valid, complete, with this server's limits; streams included."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import msgspec
import pytest

from serving.api.context import EXTENSION
from serving.api.openapi import Document
from serving.config import HttpConfig, LimitsConfig, ServerConfig
from tests.api.conftest import Front, FrontFactory

OPEN = ("/ping", "/health", "/metrics", "/execution-parameters")


def document_of(front: Front) -> dict[str, Any]:
    response = front.client.get("/api-doc/openapi.json")
    assert (response.status_code, response.content_type) == (200, "application/json")
    return msgspec.json.decode(response.data)


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_is_documented(front: Front) -> None:
    app = front.client.application
    assert EXTENSION in app.extensions
    served = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if not rule.endpoint.startswith("adapters.")  # they only refuse
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(operations(document_of(front))) == served


def test_schemas_are_valid_and_all_references_lead_somewhere(front: Front) -> None:
    document = document_of(front)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', msgspec.json.encode(document).decode()))
    assert names <= set(schemas)
    assert len({each["operationId"] for each in operations(document).values()}) == len(operations(document))


def test_examples_work(front: Front) -> None:
    for (method, path), operation in operations(document_of(front)).items():
        for content_type, content in operation.get("requestBody", {}).get("content", {}).items():
            if path in ("/generate", "/generate_stream", "/", "/invocations", "/tokenize"):
                example = content["example"]
                data = example if isinstance(example, str) else msgspec.json.encode(example)
                response = front.client.open(path, method=method, data=data, content_type=content_type)
                assert b'"status"' not in response.data
                assert response.status_code == 200, (path, response.data)
            assert content["example"], path


def test_fields_have_bounds_types_and_defaults(front: Front) -> None:
    fields = document_of(front)["components"]["schemas"]["NativeParameters"]["properties"]
    assert fields["top_k"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
    assert (fields["top_k"]["minimum"], fields["top_k"]["maximum"]) == (1, 2**31 - 1)
    assert fields["do_sample"] == {
        "type": "boolean",
        "default": False,
        "description": fields["do_sample"]["description"],
    }
    assert all(field.get("description") for field in fields.values())


def test_limits_are_this_servers(new_front: FrontFactory) -> None:
    limits = LimitsConfig(max_best_of=7, max_top_n_tokens=9, max_stop_sequences=3, max_input_tokens=100)
    front = new_front(limits=limits, http=HttpConfig(unknown_parameters="refuse"))
    schemas = document_of(front)["components"]["schemas"]
    fields = schemas["NativeParameters"]["properties"]
    assert fields["best_of"]["maximum"] == 7
    assert fields["top_n_tokens"]["maximum"] == 9
    assert fields["stop"]["maxItems"] == 3
    assert fields["truncate"]["maximum"] == 100
    assert schemas["NativeRequest"]["additionalProperties"] is False
    assert (
        "additionalProperties" not in Document(ServerConfig()).tree["components"]["schemas"]["NativeRequest"]
    )


def test_the_key_is_documented_where_it_is_asked_for(new_front: FrontFactory, front: Front) -> None:
    assert "security" not in document_of(front)
    locked = new_front(http=HttpConfig(api_key="secret", api_key_exempt=("invocations",)))
    assert locked.client.get("/api-doc/openapi.json").status_code == 401
    response = locked.client.get("/api-doc/openapi.json", headers={"Authorization": "Bearer secret"})
    document = response.json
    assert b"secret" not in response.data
    assert document["security"] == [{"api_key": []}]
    assert document["components"]["securitySchemes"]["api_key"] == {"type": "http", "scheme": "bearer"}
    for (method, path), operation in operations(document).items():
        opened = (method == "get" and path in OPEN) or path == "/invocations"
        assert (operation.get("security") == []) is opened, path
        assert ("401" in operation["responses"]) is not opened, path


@pytest.mark.parametrize("status", ["400", "405", "413", "415", "422", "429", "500", "503"])
def test_generation_documents_every_way_to_fail(front: Front, status: str) -> None:
    for path in ("/generate", "/generate_stream", "/", "/invocations"):
        answers = document_of(front)["paths"][path]["post"]["responses"]
        assert "x-request-id" in answers[status]["headers"]
        assert answers[status]["content"]["application/json"]["schema"]
    assert "retry-after" in answers["429"]["headers"]
