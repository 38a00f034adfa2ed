"""A filter and a signal as they stood in a file before code had identities."""

from benchmark import register_filter, register_signal


@register_signal(columns=["score"])
def golden_half(rows, *, scale: float = 0.5):
    """Halve the score."""
    return rows["score"] * scale


@register_filter(signals=["golden_half"], fraction=0.5)
def golden_top(rows, *, scale: float = 0.5):
    """Score by half the score, and a little more."""
    return rows["golden_half"] + 1
