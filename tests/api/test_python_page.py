"""The page about Python and its notebook run, on `pico` instead of `nano`, where the two experiments are."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import winnow as wb
from benchmark.registry import SUITES, TASKS
from tests.api.test_names import SIGNATURES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_look.ipynb"


@pytest.fixture
def folder(tmp_path, pico_pool, experiments, monkeypatch):
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools" / "pico").symlink_to(pico_pool)
    (tmp_path / "experiments").symlink_to(experiments)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def at_pico(code):
    """Return the code at the scale of the tests; the board is nano's own."""
    return code.replace("nano", "pico").replace('read_board("pico")', 'read_board("nano")')


def test_the_page_runs(folder, capsys):
    known = dict(TASKS), dict(SUITES)
    names = {"__name__": "page"}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(compile(at_pico(block), "docs/python.md", "exec"), names)
    finally:
        for table, before in zip((TASKS, SUITES), known, strict=True):
            for name in set(table) - set(before):
                del table[name]
    assert names["same"] is True and len(names["first_batch"][1]) == 64 and names["image"].mode == "RGB"
    assert len(names["batch"]) == 64
    assert "array-missing" in capsys.readouterr().out


def test_the_page_has_every_public_name():
    for name in (*wb.__all__, *SIGNATURES):
        assert f"`{name}`" in PAGE, name
        assert re.search(rf"\b(wb|pool|\w+)\.{name.rpartition('.')[2]}\b", PAGE), name


def test_page_and_notebook_begin_with_the_experiments_of_the_tests():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    commands = re.search(r"```bash\n(.*?)```", PAGE, re.S)[1]
    assert re.search(r"```bash\n(.*?)```", notebook.cells[0].source, re.S)[1] == commands
    assert re.findall(r"filters=(\w+) exp_dir=experiments/(\w+) seeds=\[0,1\]", commands) == [
        ("clip_score", "clip_score"),
        ("no_filter", "no_filter"),
    ]


def test_the_notebook_runs_and_is_stored_without_outputs(folder, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    for cell in notebook.cells:
        cell.source = at_pico(cell.source)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    tables = [output for output in shown if "text/html" in output.get("data", {})]
    assert len(pictures) == 2 and len(tables) >= 4
    told = [output.text for output in shown if output.output_type == "stream" and output.name == "stdout"]
    assert any(re.search(r"1,200 and 1,200 pairs, [\d,]+ in both", text) for text in told), told
    warned = [output.text for output in shown if output.output_type == "stream" and output.name == "stderr"]
    assert sum("long_captions" in text and "this process" in text for text in warned) == 1, warned
