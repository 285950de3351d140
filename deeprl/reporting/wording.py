"""Numbers in words: the same on the page of a report and in the table of a comparison."""

from __future__ import annotations

import math

DASH = "\N{EN DASH}"


def number_text(value: float) -> str:
    """Three digits, or one decimal place from 100 on; a dash for NaN."""
    if not math.isfinite(value):
        return DASH if math.isnan(value) else str(value)
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def interval_text(low: float, high: float) -> str:
    """`low to high`, or a dash where there is no interval."""
    return DASH if math.isnan(low) else f"{number_text(low)} to {number_text(high)}"


def with_interval(value: float, low: float, high: float) -> str:
    """`value (low to high)`, without an interval where there is none."""
    return number_text(value) + ("" if math.isnan(low) else f" ({interval_text(low, high)})")
