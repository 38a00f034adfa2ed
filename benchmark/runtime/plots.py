"""How plots look: their colours and frame, as PNGs whose bytes depend on their data alone; matplotlib comes late."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

KEPT, DROPPED, OTHERS, CUT, INK, FAINT = "#2a6f97", "#d4cdc1", "#e0a458", "#b23a48", "#23211e", "#6b655c"


def png(size: tuple[float, float], draw: Callable[[Any], None]) -> bytes:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's style would change the bytes
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        matplotlib.rcParams["text.parse_math"] = False  # a "$" in a name is a "$"
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
