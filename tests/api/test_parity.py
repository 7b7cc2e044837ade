"""`docs/api-parity.md` is what its generator makes, every schema field is in it, and its claims hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.api import parity
from serving.api.parity_differences import OPENAI, TGI
from tests.api.conftest import Front

DOCUMENT = Path(__file__).parents[2] / "docs" / "api-parity.md"


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == parity.render(), (
        "run: python -m serving.api.parity > docs/api-parity.md"
    )


def test_every_field_of_every_schema_is_in_it() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for route in parity.routes():
        for field in (*route.fields, *route.refused, *route.without_effect):
            assert f"| `{field}` | " in text, (route.title, field)
            assert route.status(field) != parity.UNKNOWN


def test_no_field_has_two_fates() -> None:
    for route in parity.routes():
        assert not set(route.refused) & set(route.without_effect), route.title


@pytest.mark.parametrize("differences", [TGI, OPENAI])
def test_differences_are_complete_sentences_of_a_table(differences: Any) -> None:
    subjects = [subject for subject, _, _ in differences]
    assert len(subjects) == len(set(subjects))
    for row in differences:
        assert all(cell and "|" not in cell and "\n" not in cell for cell in row)


@pytest.mark.parametrize(
    ("index", "path", "body"),
    [
        (4, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        (4, "/chat_tokenize", {"messages": [{"role": "user", "content": "hi"}]}),
        (5, "/v1/completions", {"prompt": "hi"}),
        (6, "/v1/responses", {"input": "hi"}),
    ],
)
def test_refused_fields_are_refused_by_name_with_the_reason(
    front: Front, index: int, path: str, body: dict[str, Any]
) -> None:
    for field, reason in parity.routes()[index].refused.items():
        response = front.client.post(path, json={**body, field: "x"})
        assert response.status_code in (400, 422), field
        text = response.get_data(as_text=True)
        assert f"`{field}`" in text and reason.split('"')[0][:60] in text, field
