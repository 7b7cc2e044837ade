"""Names of other images' configurations, one module per family: what each sets here, or why it cannot.

A name is an alias of a setting, is refused because ignoring it would change answers, or is accepted without effect.
"""

from __future__ import annotations

from container.families.family import Alias, Family, IgnoredPrefix, NoEffect, Refusal
from container.families.hugging_face import HUGGING_FACE
from container.families.lmi import LMI
from container.families.tgi import TGI
from container.families.toolkits import TOOLKITS
from container.families.vllm import VLLM

FAMILIES: tuple[Family, ...] = (TGI, HUGGING_FACE, LMI, VLLM, TOOLKITS)

__all__ = ["FAMILIES", "Alias", "Family", "IgnoredPrefix", "NoEffect", "Refusal"]
