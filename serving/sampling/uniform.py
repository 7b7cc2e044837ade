"""One uniform number per sampled token, from a counter-based hash: no generator state to keep, restore or share."""

from __future__ import annotations

from enum import IntEnum

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Purpose(IntEnum):
    """Separates the draws made for one output position."""

    SAMPLE = 0
    DRAFT_ACCEPTANCE = 1
    RECOVERY = 2


def uniform(seed: int, position: int, purpose: Purpose = Purpose.SAMPLE) -> float:
    """A number in [0, 1) with 53 random bits that depends on these three only.

    SplitMix64's output function (Steele, Lea, Flood 2014), applied once per component.
    """
    state = _mix((seed + _GOLDEN) & _MASK)
    state = _mix((state ^ position) + _GOLDEN & _MASK)
    state = _mix((state ^ int(purpose)) + _GOLDEN & _MASK)
    return (state >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
