"""A linear cost learned from a stream of samples: least squares with forgetting, no coefficient below zero. Only numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from math import sqrt


class LeastSquares:
    """Minimizes the sum of ((value - inputs · coefficients) / scale)² over the samples, older ones weighing less.

    `caution` has a number per input, its ridge relative to what the samples say about it: where the samples leave open which
    of two inputs explains them, it is the one with less caution. An input that was never seen costs nothing.
    """

    def __init__(self, caution: Sequence[float], *, memory: float) -> None:
        """`memory`: what a sample weighs when the next one comes."""
        self._caution = tuple(caution)
        self._memory = memory
        self._pairs = list(combinations_with_replacement(range(len(self._caution)), 2))
        self._moments = [0.0] * len(self._pairs)
        self._products = [0.0] * len(self._caution)
        self._coefficients: list[float] | None = None
        self.num_samples = 0

    def observe(self, inputs: Sequence[float], value: float, *, scale: float) -> None:
        """`scale`: by what errors are divided. With the value itself they are relative, and a sample that a busy machine
        made ten times too long moves the result less than one that took twice as long: it weighs a hundredth."""
        weight, memory = 1.0 / (scale * scale), self._memory
        self._moments = [
            memory * moment + weight * inputs[i] * inputs[j]
            for moment, (i, j) in zip(self._moments, self._pairs, strict=True)
        ]
        self._products = [
            memory * product + weight * value * one
            for product, one in zip(self._products, inputs, strict=True)
        ]
        self._coefficients = None
        self.num_samples += 1

    @property
    def coefficients(self) -> list[float]:
        if self._coefficients is None:
            self._coefficients = self._solve()
        return self._coefficients

    def predict(self, inputs: Sequence[float]) -> float:
        return sum(c * one for c, one in zip(self.coefficients, inputs, strict=True))

    def _solve(self) -> list[float]:
        """Drops the most negative coefficient until there is none."""
        count = len(self._caution)
        matrix = [[0.0] * count for _ in range(count)]
        for (i, j), moment in zip(self._pairs, self._moments, strict=True):
            matrix[i][j] = matrix[j][i] = moment
        active = [i for i in range(count) if matrix[i][i] > 0.0]
        found = [0.0] * count
        while active:
            scales = [sqrt(matrix[i][i]) for i in active]
            rows = [
                [matrix[i][j] / (a * b) for j, b in zip(active, scales, strict=True)]
                + [self._products[i] / a]
                for i, a in zip(active, scales, strict=True)
            ]
            for place, i in enumerate(active):
                rows[place][place] += self._caution[i]
            solution = [value / a for value, a in zip(_eliminate(rows), scales, strict=True)]
            worst = min(range(len(active)), key=lambda place: solution[place] * scales[place])
            if solution[worst] >= 0.0:
                for i, value in zip(active, solution, strict=True):
                    found[i] = value
                break
            del active[worst]
        return found


def _eliminate(rows: list[list[float]]) -> list[float]:
    """Solve a positive definite system in place; the last column is the right-hand side."""
    count = len(rows)
    for pivot in range(count):
        top = rows[pivot]
        for row in rows[pivot + 1 :]:
            factor = row[pivot] / top[pivot]
            for column in range(pivot, count + 1):
                row[column] -= factor * top[column]
    solution = [0.0] * count
    for place in range(count - 1, -1, -1):
        row = rows[place]
        known = sum(row[column] * solution[column] for column in range(place + 1, count))
        solution[place] = (row[count] - known) / row[place]
    return solution
