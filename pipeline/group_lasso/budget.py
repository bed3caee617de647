"""What a solve will hold in memory, worked out before it starts, and how many columns a budget allows."""

from __future__ import annotations

import os
from typing import NamedTuple

from pipeline.group_lasso.source import ColumnSource
from pipeline.memory import format_memory
from store.errors import InvalidInputError

LEAST_COLUMNS = 32
FETCH_ELEMENTS = 1 << 21
"""Values fetched at a time."""
CHUNK_ELEMENTS = 1 << 19
"""Values of held columns multiplied at a time, by each thread."""
HELD_ELEMENTS = 1 << 21
"""Values of columns that each thread may copy, to multiply them again and again."""
_COLUMNS_PER_SAMPLE = 8
_USUAL_COLUMNS = 4096


class MemoryPlan(NamedTuple):
    """How a budget is divided; without Python and its libraries, which take about 0.6 GiB of their own.

    Attributes
    ----------
    memory : int
        The budget, in bytes.
    fixed : int
        Bytes of everything but cached columns: vectors over features and over samples, and what a scan needs here.
    column : int
        Bytes of a cached column: 4 n.
    capacity : int
        Columns that fit.
    fill : int
        Columns M fetched after the first pass; the rest of the capacity is for those that turn out to be needed.
    threads : int
        How many penalties may be solved at once, in what scans and fetches need and leave free meanwhile.
    """

    memory: int
    fixed: int
    column: int
    capacity: int
    fill: int
    threads: int

    @property
    def projected(self) -> int:
        """Bytes the solve is expected to hold at most."""
        return self.fixed + self.fill * self.column

    def __str__(self) -> str:
        return (
            f"memory: {format_memory(self.projected)} projected of {format_memory(self.memory)} allowed: "
            f"{self.fill:,} columns of {format_memory(self.column)}, {format_memory(self.fixed)} for the rest; "
            "Python and its libraries come on top"
        )

    def too_small(self, needed: int) -> InvalidInputError:
        """Return the error that says how much memory would do, to be raised by the caller.

        Parameters
        ----------
        needed : int
            Columns that must be held at once.
        """
        least = self.fixed + needed * self.column
        return InvalidInputError(
            f"memory={self.memory} bytes is too small: {needed} columns of {self.column} bytes must be held at once, "
            f"besides {self.fixed} bytes for the rest; the least that works here is memory={least} "
            f"({format_memory(least)})."
        )


def plan_memory(source: ColumnSource, n_outputs: int, n_penalties: int, keep: int, memory: int) -> MemoryPlan:
    """Divide a budget.

    Parameters
    ----------
    source : ColumnSource
        The features.
    n_outputs : int
        Classes or targets, K.
    n_penalties : int
        Number of λ, L.
    keep : int
        How many features will be wanted.
    memory : int
        The budget, in bytes.

    Returns
    -------
    MemoryPlan
        With room for at least 32 columns.

    Raises
    ------
    InvalidInputError
        If the budget cannot work.
    """
    n, p = source.n_samples, source.n_features
    # Bytes per feature: what stays, and the larger of what the first pass and the checks of all λ need for a while.
    per_feature = 40 + max(160, 64 + 32 * n_penalties)
    # Bytes per sample and output: a step of the solver, and the points on the path with their residuals.
    per_sample = 120 + 28 * n_penalties
    fetching = 20 * min(FETCH_ELEMENTS, n * p)
    working_set = 80 * n_outputs * min(p, 2 * n)
    scan = source.scan_bytes(n_outputs * n_penalties)
    fixed = per_feature * p + per_sample * n * n_outputs + fetching + working_set + scan
    column = 4 * n
    capacity = min(p, max(memory - fixed, 0) // column)
    wanted = max(_COLUMNS_PER_SAMPLE * n, 4 * keep, _USUAL_COLUMNS)
    if p <= 4 * wanted:  # to hold them all spares every repair
        wanted = p
    fill = min(wanted, capacity if capacity == p else 3 * capacity // 4)
    one_thread = 120 * n * n_outputs + working_set + 12 * CHUNK_ELEMENTS + 4 * min(HELD_ELEMENTS, n * p)
    threads = min(os.cpu_count() or 1, n_penalties, 1 + (scan + fetching) // one_thread)
    plan = MemoryPlan(memory, fixed, column, capacity, fill, threads)
    least = min(p, LEAST_COLUMNS)
    if capacity < least:
        raise plan.too_small(least)
    return plan
