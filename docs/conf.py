"""How the documentation is built: Sphinx with MyST and furo. Some pages are made of what the program itself says.

pip install -e '.[docs]' && sphinx-build -W docs build/docs
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import benchmark  # noqa: E402

project = "Winnow"
author = "Winnow maintainers"
version = release = benchmark.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"Winnow {version}"
exclude_patterns = ["generated/*"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
# Sources, licences and folders of the repository are no pages of these.
suppress_warnings = ["myst.xref_missing"]

COMMANDS = [
    *([verb, "--help"] for verb in ("run", "filter", "reshard", "train", "evaluate", "report")),
    *(["pool", action, "--help"] for action in ("build", "index", "check", "import", "sample")),
    ["subset", "--help"],
    ["list", "--help"],
    *(["leaderboard", action, "--help"] for action in ("table", "compare", "agreement")),
]
NOT_RUN = re.compile(r"^\*Not run here: (.*)\*\n\n```bash\n(.*?)```", re.M | re.S)


def printed(arguments: list[str]) -> str:
    """Return what a command prints."""
    from benchmark.cli.main import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(arguments)
    return out.getvalue()


def commands_page() -> str:
    """Return every command's help."""
    parts = [f"## winnow\n\n```text\n{printed(['--help'])}```\n"]
    for arguments in COMMANDS:
        parts.append(f"## winnow {' '.join(arguments[:-1])}\n\n```text\n{printed(arguments)}```\n")
    return "\n".join(parts)


def strategies_page() -> str:
    """Return a table of the shipped strategies, by kind."""
    from benchmark.registry import load_strategies

    shipped = load_strategies().values()
    lines = []
    for kind in ("filter", "selector", "signal"):
        lines += [f"## {kind.capitalize()}s", "", "| name | what it does | needs | from |", "|---|---|---|---|"]
        for strategy in sorted(shipped, key=lambda each: each.name):
            if strategy.kind == kind:
                needs = [*strategy.columns, *strategy.features, *strategy.signals, *strategy.assets.values()]
                needs += ["images"] if strategy.images else []
                spelt = ", ".join(f"`{each}`" for each in needs)
                lines.append(f"| `{strategy.name}` | {strategy.summary} | {spelt} | {strategy.paper} |")
        lines.append("")
    return "\n".join(lines)


def not_run_page() -> str:
    """Return the commands in blocks that are marked as not run, by page."""
    lines = []
    for path in sorted(DOCS.rglob("*.md")):
        for reason, code in NOT_RUN.findall(path.read_text()):
            lines += [f"**{path.relative_to(DOCS).with_suffix('')}**: {reason}", "", f"```bash\n{code}```", ""]
    return "\n".join(lines)


def generate(_app: object) -> None:
    """Write the parts that pages include."""
    folder = DOCS / "generated"
    folder.mkdir(exist_ok=True)
    for name, make in (("commands", commands_page), ("strategies", strategies_page), ("not_run_here", not_run_page)):
        (folder / f"{name}.md").write_text(make())


def setup(app: object) -> None:
    """Have the generated parts written before pages are read."""
    app.connect("builder-inited", generate)  # type: ignore[attr-defined]
