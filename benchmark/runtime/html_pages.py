"""HTML from Jinja2 templates: whatever a stranger typed is escaped, and a page fetches nothing and runs nothing.

Templates that several pages share lie in `templates/` beside this file: `base.html.j2` (a whole page, its one
stylesheet inlined), `macros.html.j2` (tables and plots). A page's own template lies in the package that fills it.
"""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SHARED_DIR = Path(__file__).parent / "templates"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render(folder: Path, template: str, /, **values: Any) -> Markup:
    """Fill a template of the folder, or of those that all pages share; return HTML that needs no more escaping.

    The same values give the same text. A value that a template names and that is not given is an error.
    """
    from markupsafe import Markup

    return Markup(_environment(folder).get_template(template).render(**values))


def data_url(data: bytes, kind: str) -> str:
    """Return an image (`kind`: png or jpeg) as the URL that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@cache
def _environment(folder: Path) -> Environment:
    import jinja2  # here, as most commands make no page

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, SHARED_DIR]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _printable(value: Any) -> Any:
    """Replace control characters, which no page needs, by U+FFFD; HTML of our own templates has none."""
    return CONTROL.sub("\ufffd", value) if type(value) is str else value
