"""How numbers and columns are spelt, for a terminal and for Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

WIDTH = 118
GAP = "  "

Lines = Sequence[Sequence[str]]


def aligned(lines: Lines, left: Collection[int], hanging: tuple[int, int] | None = None) -> list[str]:
    """Pad texts to columns, those numbered in `left` to the left.

    `hanging` is a column and its width: what is longer there is not cut, and the rest of its line goes on below it.
    """
    column, room = hanging or (-1, 0)
    widths = [
        max((len(text) for text in texts if number != column or len(text) <= room), default=0)
        for number, texts in enumerate(zip(*lines, strict=True))
    ]

    def padded(texts: Sequence[str]) -> str:
        return GAP.join(
            text.ljust(space) if number in left else text.rjust(space)
            for number, (text, space) in enumerate(zip(texts, widths, strict=True))
        ).rstrip()

    spelt = []
    for texts in lines:
        if hanging is None or len(texts[column]) <= room:
            spelt.append(padded(texts))
            continue
        first = [*texts[: column + 1], *[""] * (len(texts) - column - 1)]
        below = [*[""] * (column + 1), *texts[column + 1 :]]
        spelt.append(f"{padded(first)}\n{padded(below)}")
    return spelt


def text_table(
    header: Sequence[str], cells: Lines, left: Collection[int], hanging: tuple[int, int] | None = None
) -> list[str]:
    """Return the rows of a table for a terminal, `hanging` as in `aligned`; a title's line break makes it two lines."""
    top = [[title.partition("\n")[part] for title in header] for part in (0, 2)]
    spelt = aligned([*top, *cells], left, hanging)
    head = spelt[:2] if any(top[1]) else spelt[:1]
    return [*head, "-" * max(len(line) for row in spelt for line in row.split("\n")), *spelt[2:]]


def markdown_table(header: Sequence[str], cells: Lines, left: Collection[int]) -> list[str]:
    """Return the lines of a table in GitHub's Markdown."""
    rule = ["---" if column in left else "---:" for column in range(len(header))]
    lines = [[title.replace("\n", " ") for title in header], rule, *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]


def page(title: str, blocks: Sequence[Sequence[str]], sentences: Sequence[str], style: str) -> str:
    """Join a title, tables and the sentences under them, as text or as Markdown."""
    is_markdown = style == "markdown"
    lines = [f"## {title}" if is_markdown else title, ""]
    for block in blocks:
        lines += [*block, ""] if block else []
    for sentence in sentences:
        lines.append(
            f"- {sentence.replace('>', '&gt;')}"
            if is_markdown
            else textwrap.fill(sentence, WIDTH, break_on_hyphens=False)
        )
    return "\n".join(lines) + "\n"


def score(value: float) -> str:
    """Spell a number with three decimals and no leading zero; what rounds to 0 has no sign."""
    told = f"{abs(value):.3f}".removeprefix("0")
    return f"-{told}" if value < 0 and told != ".000" else told


def signed(value: float) -> str:
    """Spell a difference with its sign, which is + for what rounds to 0."""
    told = score(value)
    return told if told.startswith("-") else f"+{told}"


def shortened(name: str, room: int) -> str:
    """Cut a name that does not fit."""
    return name if len(name) <= room else name[: room - 1] + "…"


def listed(names: Sequence[str]) -> str:
    """Spell a list as in a sentence."""
    shown = list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def listed_some(names: Sequence[str], most: int = 6) -> str:
    """Spell a list as in a sentence; of a long one the first, and how many more there are."""
    if len(names) <= most:
        return listed(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def averaged_over(num_reporting: int, num_development: int) -> str:
    """Say over which tasks of a suite its average is; with a development half, which tasks that has too."""
    if num_development:
        return (
            f"the suite's reporting half ({counted(num_reporting, 'task')}), dev the mean over its development half "
            f"({num_development})"
        )
    return "the 1 task" if num_reporting == 1 else f"all {num_reporting} tasks"


def counted(number: int, noun: str) -> str:
    """Spell a number of things."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
