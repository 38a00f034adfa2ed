"""Pages from templates: everything that is filled in is escaped, wherever it stands, and a gap is an error."""

import re
from pathlib import Path

import jinja2
import pytest

from benchmark.runtime.html_pages import SHARED_DIR, data_url, render

HOSTILE = "<script>\x00'\"</script>"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    text = """{% from "macros.html.j2" import plot, table %}{{ table([value], [[value, value]], [0.25], 0.5) }}"""
    (tmp_path / "page.html.j2").write_text(text + "{{ plot(source, value) }}{{ value }}")
    return tmp_path


def test_what_is_filled_in_is_escaped_in_texts_cells_and_attributes(page: Path) -> None:
    found = render(page, "page.html.j2", value=HOSTILE, source=data_url(b"?", "png"))
    assert found.count("&lt;script&gt;\ufffd&#39;&#34;&lt;/script&gt;") == 5
    tags = re.findall(r"<[^>]*>", found)
    assert not [tag for tag in tags if "script" in tag and "&lt;" not in tag]
    assert 'src="data:image/png;base64,Pw=="' in found
    assert "width:25.0%" in found and "left:50.0%" in found


def test_html_that_was_rendered_is_not_escaped_again(page: Path) -> None:
    (page / "outer.html.j2").write_text("<i>{{ inner }}</i>")
    inner = render(page, "page.html.j2", value="a & b", source="")
    assert render(page, "outer.html.j2", inner=inner) == f"<i>{inner}</i>"


def test_a_value_that_is_not_given_is_an_error(page: Path) -> None:
    with pytest.raises(jinja2.UndefinedError):
        render(page, "page.html.j2", value="")


def test_the_stylesheet_fetches_nothing() -> None:
    style = (SHARED_DIR / "style.css").read_text()
    assert "url(" not in style and "@import" not in style and "<" not in style
