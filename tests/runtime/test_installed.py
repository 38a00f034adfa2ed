"""Installed packages: some bring filters and tasks by entry points, and some are in the way of Winnow's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.registry import STRATEGIES, TASKS, load_strategies, load_tasks
from benchmark.runtime import installed
from benchmark.runtime.identity import package_dirs
from tests.conftest import user_error

ROOT = Path(__file__).resolve().parents[2]

FILTER = '''"""A made-up rule."""

from benchmark import register_filter

from .limits import LIMIT


@register_filter(columns=["text"])
def from_a_package(rows):
    """Keep long captions."""
    return rows["text"].str.len() > LIMIT
'''

TASK = '''"""A made-up task."""

from benchmark import register_task
from benchmark.evaluation.tasks import ZeroShotClassification

register_task(ZeroShotClassification(name="theirs/birds", title="Birds"))
'''


def install(site: Path, name: str, modules: dict[str, str], plugins: dict[str, str]) -> None:
    """Write a distribution as pip leaves one: its modules, and a `dist-info` that lists them."""
    for module, text in modules.items():
        (site / module).parent.mkdir(parents=True, exist_ok=True)
        (site / module).write_text(text)
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{plugin} = {module}" for plugin, module in plugins.items()]
    (info / "entry_points.txt").write_text("\n".join(["[winnow.plugins]", *lines, ""]))
    (info / "RECORD").write_text("".join(f"{module},,\n" for module in modules))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages, which is forgotten after the test."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    package_dirs.cache_clear()
    yield folder
    monkeypatch.undo()
    package_dirs.cache_clear()
    TASKS.pop("theirs/birds", None)


def test_an_installed_package_brings_filters_and_tasks_which_are_known_by_their_files(site):
    package = {
        "birds/__init__.py": "",
        "birds/rule.py": FILTER,
        "birds/limits.py": "LIMIT = 5\n",
        "birds/sets.py": TASK,
    }
    install(site, "birds", package, {"rule": "birds.rule", "sets": "birds.sets"})
    strategy = load_strategies()["from_a_package"]
    assert strategy.source_path == site / "birds" / "rule.py"
    assert load_tasks()["theirs/birds"].title == "Birds"
    before = strategy.identity
    (site / "birds" / "limits.py").write_text("LIMIT = 6\n")
    assert before is not None and load_strategies()["from_a_package"].identity not in (None, before)


def test_a_broken_one_is_named_once_and_the_others_are_loaded(site, capsys):
    install(site, "a_broken", {"a_broken.py": "1 / 0\n"}, {"first": "a_broken"})
    install(site, "b_gone", {}, {"second": "b_gone.rules"})
    install(site, "c_taken", {"c_taken.py": FILTER.replace("from_a_package", "basic")}, {"third": "c_taken"})
    package = {"birds/__init__.py": "", "birds/rule.py": FILTER, "birds/limits.py": "LIMIT = 5\n"}
    install(site, "d_birds", package, {"rule": "birds.rule"})
    assert "from_a_package" in load_strategies() and STRATEGIES["basic"].source_path.parent == ROOT / "filters"
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("'")[1] for line in lines] == ["first", "second", "third"]
    assert all(name in line for name, line in zip(("a_broken", "b_gone", "c_taken"), lines, strict=True))
    assert "ZeroDivisionError" in lines[0] and "line 1" in lines[0] and lines[0].endswith("[bad-code]")
    load_strategies()
    assert capsys.readouterr().err == ""


def test_a_module_of_an_installed_package_is_beside_no_other_package(site):
    """A lone module lies in the folder of all packages; what it imports is theirs, and in no identity."""
    text = FILTER.replace("from .limits import LIMIT", "import neighbour").replace("LIMIT", "neighbour.LIMIT")
    install(site, "lone", {"lone.py": text}, {"lone": "lone"})
    install(site, "neighbour", {"neighbour.py": "LIMIT = 5\n"}, {})
    strategy = load_strategies()["from_a_package"]
    assert strategy.loaded is not None
    assert strategy.loaded.code.helpers == {} and strategy.loaded.code.packages == {"neighbour"}


def test_files_that_another_package_put_into_our_folder_are_named(site):
    folder = site / "filters"
    install(site, "winnow-bench", {"filters/__init__.py": "", "filters/basic.py": ""}, {})
    (folder / "of_the_user.py").write_text("")
    installed.check_no_clash(folder)
    install(site, "coffee", {"filters/espresso.py": "", "coffee/filters/paper.py": ""}, {})
    with user_error("package-clash", match=r"coffee .*espresso\.py .*'filters'"):
        installed.check_no_clash(folder)


def test_a_package_written_over_by_another_is_named_by_the_command_and_by_import(tmp_path):
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "__init__.py").write_text("")
    (tmp_path / "winnow.py").write_bytes((ROOT / "winnow.py").read_bytes())
    (tmp_path / "winnow").write_text("from winnow import _command\n_command()\n")
    for script, exit_code in (("winnow", 2), ("notebook.py", 1)):
        (tmp_path / "notebook.py").write_text("import winnow\n")
        result = subprocess.run(
            [sys.executable, "-I", "-c", RUN, str(tmp_path / script)], capture_output=True, text=True
        )
        assert result.returncode == exit_code
        (line,) = [line for line in result.stderr.splitlines() if "[package-clash]" in line]
        assert str(tmp_path / "benchmark" / "__init__.py") in line
    assert "Traceback" in result.stderr


RUN = """
import runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
