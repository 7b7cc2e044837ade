"""Fixed prompts of the promise tests: the demo model's world, at many lengths, and text it has never seen."""

from __future__ import annotations

_OPENINGS = [
    "Once upon a time",
    "Once upon a time there was a",
    "The old",
    "One morning",
    "In the evening",
    "It was a cold day and",
    "The fox said",
    "A little",
    "There was",
    "After the rain",
]
_SUMS = ["3 + 4 =", "7 + 5 =", "12 + 6 =", "9 - 4 =", "2 + 2 =", "15 - 8 =", "6 + 9 =", "20 - 7 ="]
_QUESTIONS = ["What is", "Who lives", "Where is", "How many", "What does the"]
_FOREIGN = [
    "def main():\n    return",
    "Zoë went to the café",
    "SELECT name FROM",
    "1, 2, 3, 4,",
    "日本 and 🙂 are",
    '{"name": "',
    "The quick brown fox jumps over the lazy dog. " * 6,
]
_CHAINS = [f"{first} {second}" for first in _OPENINGS[:4] for second in _OPENINGS[4:9]]

PROMPTS = _OPENINGS + _SUMS + _QUESTIONS + _FOREIGN + _CHAINS
