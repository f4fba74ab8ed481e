"""Results in words: what a sentence is, and how it writes numbers."""

from __future__ import annotations

import pandas as pd

Findings = tuple[str, list[str]]  # what was measured, and a clause per model


def interval(value: float, low: float, high: float, form: str = ".3g") -> str:
    """A value with its 95% interval, e.g. "0.21 [0.18, 0.24]"; the value alone without one."""
    if pd.isna(low) or pd.isna(high):
        return f"{value:{form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def change(row: pd.Series, form: str) -> str:
    """A row's value with its interval."""
    return interval(row["value"], row["low"], row["high"], form)


def matrices_changed(changed: tuple[int, int]) -> list[str]:
    """How many matrices changed, if not all did."""
    some, every = changed
    return [f"{some} of {every} matrices changed"] if some < every else []
