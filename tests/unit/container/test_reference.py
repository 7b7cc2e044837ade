"""docs/configuration.md is what the table of variables says."""

from __future__ import annotations

from pathlib import Path

from container import reference, variables

_DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_document_is_up_to_date() -> None:
    assert _DOCUMENT.read_text() == reference.render(), (
        "run: python -m container.reference > docs/configuration.md"
    )


def test_every_known_name_is_in_it() -> None:
    text = reference.render()
    assert [name for name in sorted(variables.known_names()) if f"`{name}`" not in text] == []
