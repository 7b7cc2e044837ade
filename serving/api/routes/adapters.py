"""The routes that register, list and remove LoRA adapters, in SageMaker's and LMI's spelling: all say there are none."""

from __future__ import annotations

from typing import NoReturn

from flask import Blueprint

from serving.api.adapters import no_adapter

blueprint = Blueprint("adapters", __name__)

_COLLECTIONS = ("/adapters", "/models/<model>/adapters")


def _refuse(name: str | None = None, model: str | None = None) -> NoReturn:
    raise no_adapter(name, field="name")


for _path in _COLLECTIONS:
    blueprint.add_url_rule(_path, view_func=_refuse, methods=["GET", "POST"])
    blueprint.add_url_rule(f"{_path}/<name>", view_func=_refuse, methods=["GET", "DELETE"])
    blueprint.add_url_rule(f"{_path}/<name>/update", view_func=_refuse, methods=["POST"])
