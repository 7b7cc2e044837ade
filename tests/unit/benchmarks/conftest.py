from __future__ import annotations

import pytest

from benchmarks import alternation


@pytest.fixture(autouse=True)
def engines_need_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternation, "SETTLE_S", 0.0)
