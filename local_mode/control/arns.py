"""Names of resources as AWS writes them. Knows nothing of what they name."""

from __future__ import annotations

from dataclasses import dataclass

from local_mode.contracts import Kind

ACCOUNT = "123456789012"

TITLES: dict[Kind, str] = {
    "model": "model",
    "endpoint-config": "endpoint configuration",
    "endpoint": "endpoint",
    "inference-component": "inference component",
}
"""What AWS's error messages call each kind."""


@dataclass(frozen=True, slots=True)
class Arns:
    """Amazon Resource Names of one account in one region."""

    region: str
    account: str = ACCOUNT

    def of(self, kind: Kind, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{kind}/{name.lower()}"
