"""Skewed seeded choice: the first options of a list are likelier, so that a trained model has a clear favourite."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def pick(rng: Random, options: Sequence[T]) -> T:
    """One option; option i has weight 1 / (i + 1)."""
    return rng.choices(options, weights=[1 / (i + 1) for i in range(len(options))])[0]
