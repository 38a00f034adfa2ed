"""The plots of a report, as PNGs whose bytes depend on their data alone. matplotlib is loaded when first drawn."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmark.report.groups import Grouping, Histogram
from benchmark.report.rule_scores import FRACTIONS, FractionCurves
from benchmark.report.sheets import Sheet, SheetSample
from benchmark.report.standing import TaskStanding
from benchmark.runtime.plots import CUT, DROPPED, FAINT, INK, KEPT, OTHERS, plain, png

PANELS = 4  # beside each other
SHEET_COLUMNS, SHEET_ROWS = 8, 3  # of a sheet's PNG
CELL, GAP, CAPTION_LINES, LINE = 120, 12, 3, 15  # pixels
MAX_LABEL = 26  # characters of an entry's name


def plot_histogram(histogram: Histogram, unit: str = "rows") -> bytes:
    """Draw kept against dropped rows (`unit` says which rows these are), with the cut where a rule has one."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        edges, kept, others = histogram.edges, histogram.kept, histogram.dropped_by_others
        axes.stairs(kept, edges, fill=True, color=KEPT, label="kept")
        if others is not None and others.any():
            axes.stairs(kept + others, edges, baseline=kept, fill=True, color=OTHERS, label="dropped by another rule")
            kept = kept + others
        label = "dropped by this rule" if others is not None and others.any() else "dropped"
        axes.stairs(kept + histogram.dropped, edges, baseline=kept, fill=True, color=DROPPED, label=label)
        if histogram.cut_score is not None:
            label = f"cut: {histogram.cut_score:.3g}"
            axes.axvline(histogram.cut_score, color=CUT, linewidth=1.2, linestyle="--", label=label)
        axes.set_xlabel(histogram.name if others is None else f"score of {histogram.name}")
        axes.set_ylabel(unit)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlim(edges[0], edges[-1])
        axes.legend(frameon=False)
        plain(axes)

    return png((7.2, 3.2), draw)


def plot_kinds(grouping: Grouping, overall: float) -> bytes:
    """Draw the share kept of every group as a bar, and that of all rows as a line."""
    groups = grouping.groups

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        shares = [100 * group.kept / group.rows for group in groups]
        bars = axes.barh(range(len(groups)), shares, color=KEPT, height=0.68)
        label = f"all rows: {100 * overall:.0f} %"
        axes.axvline(100 * overall, color=CUT, linewidth=1.2, linestyle="--", label=label)
        texts = axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=4, color=INK, fontsize=9)
        for text in texts:
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # over the line
        axes.set_yticks(range(len(groups)), [f"{_words(group.label)}  ({group.rows:,})" for group in groups])
        axes.invert_yaxis()
        axes.set_xlim(0, min(max([*shares, 100 * overall]) * 1.15 + 2, 108))
        axes.set_xlabel("share kept, in % of the rows of that kind")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
        plain(axes)

    return png((7.2, 1.1 + 0.27 * len(groups)), draw)


def plot_curves(curves: FractionCurves) -> bytes:
    """Draw one panel per group: the share that the rule keeps of it over the fraction of the pool that it keeps."""

    def draw(figure: Any) -> None:
        count = len(curves.labels)
        rows = math.ceil(count / PANELS)
        panels = figure.subplots(rows, PANELS, sharex=True, sharey=True, squeeze=False).ravel()
        x = np.concatenate([[0], FRACTIONS])
        for number, axes in enumerate(panels):
            if number >= count:
                axes.axis("off")
                continue
            axes.plot([0, 1], [0, 1], color=DROPPED, linewidth=1)
            if curves.cut_fraction is not None:
                axes.axvline(curves.cut_fraction, color=CUT, linewidth=1, linestyle="--")
            axes.plot(x, np.concatenate([[0], curves.shares[number]]), color=KEPT, linewidth=1.8)
            axes.set_title(f"{_words(curves.labels[number])} ({curves.rows[number]:,})", fontsize=9)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.02)
            axes.set_xticks([0, 0.5, 1])
            axes.set_yticks([0, 0.5, 1])
            axes.tick_params(labelsize=8, labelbottom=number + PANELS >= count)
            plain(axes)
        figure.supxlabel("fraction of the pool that the rule keeps", fontsize=9)
        figure.supylabel("share kept of the group", fontsize=9)

    return png((8.4, 0.5 + 1.45 * math.ceil(len(curves.labels) / PANELS)), draw)


def plot_tasks(standings: Sequence[TaskStanding]) -> bytes:
    """Draw one panel per task: the run and the board's entries, each a mean over seeds with its interval."""
    names = [_shortened(score.name) for score in standings[0].scores]
    columns = min(PANELS, len(standings))
    rows = math.ceil(len(standings) / columns)

    def draw(figure: Any) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for number, axes in enumerate(panels):
            if number >= len(standings):
                axes.axis("off")
                continue
            standing = standings[number]
            own = standing.own
            if own.half_width is not None:
                axes.axvspan(*own.interval, color=KEPT, alpha=0.12, linewidth=0)
            for place, score in enumerate(standing.scores):
                colour = CUT if score.is_own else FAINT if score.is_reference else KEPT
                low, high = score.interval
                axes.errorbar(
                    score.mean,
                    place,
                    xerr=None if score.half_width is None else [[score.mean - low], [high - score.mean]],
                    fmt="D" if score.is_own else "o",
                    color=colour,
                    markerfacecolor="white" if score.is_reference else colour,
                    markersize=4.5,
                    elinewidth=1.2,
                )
            axes.set_title(standing.task, fontsize=9)
            spelt = names if number % columns == 0 else [""] * len(names)  # once per row of panels
            axes.set_yticks(range(len(names)), spelt, fontsize=8)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(axis="x", color="#eeeae2")
            axes.set_axisbelow(True)
            axes.locator_params(axis="x", nbins=4)
            axes.tick_params(axis="x", labelsize=8)
            plain(axes)
            for label, score in zip(axes.get_yticklabels(), standing.scores, strict=True):
                label.set_color(CUT if score.is_own else INK)
        figure.supxlabel("score", fontsize=9)

    return png((8.4, 0.5 + rows * (0.55 + 0.2 * len(names))), draw)


def draw_sheet(sheet: Sheet) -> bytes:
    """Draw the first samples of a sheet with their captions."""
    samples = sheet.samples[: SHEET_COLUMNS * SHEET_ROWS]
    columns = min(SHEET_COLUMNS, max(len(samples), 1))
    rows = math.ceil(len(samples) / columns)
    height = CELL + 4 + CAPTION_LINES * LINE
    canvas = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + rows * (height + GAP)), "white")
    painter = ImageDraw.Draw(canvas)
    font = _font(12)
    for number, sample in enumerate(samples):
        left = GAP + number % columns * (CELL + GAP)
        top = GAP + number // columns * (height + GAP)
        painter.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill="#f5f2ec")
        if sample.picture is None:
            painter.text((left + 6, top + CELL // 2 - 8), "cannot be decoded", fill=FAINT, font=_font(11))
        else:
            picture = _fitted(Image.open(io.BytesIO(sample.picture), formats=["JPEG"]))
            canvas.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        for line, text in enumerate(_wrapped(sample, font)):
            painter.text((left, top + CELL + 4 + line * LINE), text, fill=INK, font=font)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _fitted(picture: Image.Image) -> Image.Image:
    scale = (CELL - 4) / max(picture.size, default=1)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _wrapped(sample: SheetSample, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a caption into lines that fit a cell; what does not fit ends in an ellipsis."""
    text = " ".join(sample.caption[: CELL * CAPTION_LINES].split())
    left = [character for character in text if unicodedata.category(character)[0] != "C"]
    lines: list[str] = []
    while left and len(lines) < CAPTION_LINES:
        length = len(left)
        while length > 1 and font.getlength("".join(left[:length])) > CELL:
            length -= 1
        if length < len(left) and " " in left[1:length]:
            length = length - left[:length][::-1].index(" ")
        lines.append("".join(left[:length]).strip())
        left = left[length:]
    if left or len(sample.caption) > CELL * CAPTION_LINES:
        last = lines[-1]
        while last and font.getlength(last + "…") > CELL:
            last = last[:-1]
        lines[-1] = last + "…"
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _words(label: str) -> str:
    """Spell a label for people, without what fonts do not have."""
    text = "".join(character for character in label if unicodedata.category(character)[0] != "C")
    return _shortened(text.replace("_", " "))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"
