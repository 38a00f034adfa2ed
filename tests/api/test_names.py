"""The public API stays: its names, signatures and types, and how little `import winnow` loads."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmark
import winnow

ROOT = Path(__file__).resolve().parents[2]

# Raised by hand, with a line in CHANGELOG.md: notebooks and programs of others depend on every line.
SIGNATURES = {
    "open_pool": "(location: 'str | Path', *, strict: 'bool' = True) -> 'Pool'",
    "score": (
        "(frame: 'pd.DataFrame', name: 'str', *, features: 'Mapping[str, np.ndarray] | None' = None, "
        "images: 'Sequence[Image.Image | None] | None' = None, device: 'str' = 'cpu', **options: 'Any') -> 'pd.Series'"
    ),
    "rule": (
        "(name: 'str', *, fraction: 'float | None' = None, threshold: 'float | None' = None, **options: 'Any') -> "
        "'Rule'"
    ),
    "select": (
        "(pool: 'Pool', rules: 'Sequence[Rule]', *, within: 'Subset | None' = None, workers: 'int' = 0, "
        "device: 'str' = 'cpu') -> 'Subset'"
    ),
    "read_subset": "(path: 'str | Path') -> 'Subset'",
    "open_experiment": "(folder: 'str | Path') -> 'Experiment'",
    "compare": (
        "(experiment: 'Experiment | str | Path', other: 'Experiment | str | Path', *, suite: 'str | None' = None, "
        "board: 'str | None' = None) -> 'Comparison'"
    ),
    "read_board": "(name: 'str | Path') -> 'Table'",
    "Pool.to_pandas": (
        "(self, columns: 'Sequence[str] | None' = None, *, max_rows: 'int | None' = 10000000) -> 'pd.DataFrame'"
    ),
    "Pool.to_webdataset": (
        "(self, subset: 'Subset | None' = None, *, seed: 'int' = 0, scale: 'str | Scale | None' = None, "
        "order: 'str' = 'winnow', first_step: 'int' = 0, shuffle_buffer: 'int' = 1000) -> 'SubsetPipeline'"
    ),
    "Subset.to_series": "(self) -> 'pd.Series'",
    "Subset.write": "(self, path: 'str | Path') -> 'None'",
    "register_filter": (
        "(*, columns: 'Sequence[str]' = (), features: 'Sequence[str]' = (), assets: 'Mapping[str, str]' = "
        "mappingproxy({}), packages: 'Mapping[str, str]' = mappingproxy({}), planted: 'Sequence[str]' = (), "
        "images: 'bool' = False, signals: 'Sequence[str]' = (), setup: 'Callable[..., Any] | None' = None, "
        "fraction: 'float | None' = None, threshold: 'float | None' = None, reference: 'bool' = False) -> "
        "'Callable[[Function], Function]'"
    ),
    "register_selector": (
        "(*, columns: 'Sequence[str]' = (), features: 'Sequence[str]' = (), assets: 'Mapping[str, str]' = "
        "mappingproxy({}), signals: 'Sequence[str]' = (), reference: 'bool' = False) -> "
        "'Callable[[Function], Function]'"
    ),
    "register_signal": (
        "(*, columns: 'Sequence[str]' = (), features: 'Sequence[str]' = (), assets: 'Mapping[str, str]' = "
        "mappingproxy({}), images: 'bool' = False, signals: 'Sequence[str]' = (), "
        "setup: 'Callable[..., Any] | None' = None, asks_server: 'bool' = False) -> "
        "'Callable[[Function], Function]'"
    ),
    "register_task": "(task: 'Task') -> 'Task'",
    "register_suite": "(suite: 'Suite') -> 'Suite'",
}
CLASSES = {
    "Pool": {"dir", "to_pandas", "to_webdataset"},
    "PoolView": {"uids", "columns", "features"},
    "Subset": {"uids", "num_distinct", "max_copies", "of", "to_series", "write"},
    "UserError": {"code"},
}
METHODS = {  # of what functions return
    "benchmark.api.results.Experiment": {"dir", "subset", "scores", "predictions", "costs"},
    "benchmark.api.results.Comparison": {"evaluation", "to_pandas"},
    "leaderboard.table.Table": {"to_pandas", "rows", "sentences", "board"},
}


def members_of(kind):
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    return {name for name in dir(kind) if not name.startswith("_")} | {*fields, *getattr(kind, "__annotations__", {})}


def test_the_names_are_those():
    names = {name.partition(".")[0] for name in SIGNATURES} | set(CLASSES)
    assert set(benchmark.__all__) == names and set(winnow.__all__) == {*names, "__version__"}
    for name in winnow.__all__:
        assert getattr(winnow, name) is getattr(benchmark, name)
    assert set(winnow.__all__) <= set(dir(winnow)) and set(benchmark.__all__) <= set(dir(benchmark))
    assert re.fullmatch(r"\d+\.\d+\.\d+", winnow.__version__)
    for package in (winnow, benchmark):
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = package.no_such_name


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_stay(name):
    kind, _, method = name.partition(".")
    found = getattr(getattr(winnow, kind), method) if method else getattr(winnow, kind)
    assert str(inspect.signature(found)) == SIGNATURES[name]


def test_types_have_their_public_members():
    for name, wanted in CLASSES.items():
        assert wanted - {"dir"} <= members_of(getattr(winnow, name)), name
    for name, wanted in METHODS.items():
        module, _, kind = name.rpartition(".")
        assert wanted <= members_of(getattr(__import__(module, fromlist=[kind]), kind)), name


def test_every_public_function_says_what_it_gives():
    """A docstring each; those of the API with an example."""
    for name in SIGNATURES:
        kind, _, method = name.partition(".")
        found = getattr(getattr(winnow, kind), method) if method else getattr(winnow, kind)
        assert found.__doc__, name
        assert name.startswith("register_") or name == "Subset.write" or ">>> " in found.__doc__, name


def test_importing_loads_neither_pandas_nor_torch():
    code = (
        "import sys, winnow\nassert winnow.register_filter and winnow.UserError\n"
        "heavy = {'pandas', 'torch', 'numpy', 'pyarrow', 'webdataset', 'open_clip'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "winnow.open_pool\nassert not {'torch', 'webdataset', 'open_clip'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_type_checkers_see_the_same_names():
    def imported(path):
        tree = ast.parse(path.read_text())
        return {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert imported(ROOT / "winnow-stubs" / "__init__.pyi") == set(winnow.__all__)
    assert imported(ROOT / "winnow.py") - {None} == set(winnow.__all__)


SCRIPT = '''
import numpy as np
import pandas as pd

import winnow as wb


@wb.register_filter(columns=["text"], fraction=0.3)
def long_captions(rows: pd.DataFrame, *, power: float = 1.0) -> pd.Series:
    """Score a pair by the length of its caption."""
    return rows["text"].str.len() ** power


@wb.register_selector(columns=["text"])
def first_of_each(pool: wb.PoolView, *, seed: int = 0) -> wb.Subset:
    """Keep one pair for each caption."""
    return wb.Subset.of(pool.uids[~pool.columns["text"].duplicated().to_numpy()])


def work() -> float:
    pool: wb.Pool = wb.open_pool("pools/nano")
    frame: pd.DataFrame = pool.to_pandas(["uid", "text"])
    scores: pd.Series = wb.score(frame, "long_captions", power=2.0)
    subset = wb.select(pool, [wb.rule("long_captions", fraction=0.2)], workers=2)
    copies: pd.Series = subset.to_series()
    subset.write("mine.npy")
    try:
        other: wb.Subset = wb.read_subset("mine.npy")
    except wb.UserError as error:
        print(error.code)
        raise
    experiment = wb.open_experiment("experiments/nano/mine")
    table: pd.DataFrame = experiment.scores()
    said: pd.DataFrame = experiment.predictions("nano/shapes", seed=1)
    change: pd.DataFrame = wb.compare(experiment, "experiments/nano/other").to_pandas()
    board: pd.DataFrame = wb.read_board("nano").to_pandas()
    pool.to_webdataset(other, seed=0, scale="nano")
    return float(scores.sum() + copies.sum() + len(table) + len(said) + len(change) + len(board) + np.pi)
'''
TYPOS = """
import winnow as wb
wb.open_pol("pools/nano")
wb.open_pool(3)
wb.open_pool("p").to_pandas(["uid"], 5)
wb.select("pools/nano", [])
wb.open_experiment("e").predictions("nano/shapes", seed="0")
"""
# What a user has by default, beside the libraries that have no types; torch's would take half a minute to read.
INI = """
[mypy]
strict = True
disallow_any_generics = False
explicit_package_bases = True
follow_imports = silent
ignore_missing_imports = True
mypy_path = {root}
[mypy-torch.*,sklearn.*,matplotlib.*,scipy.*,open_clip.*,pyarrow.*]
follow_imports = skip
"""


def test_a_users_script_passes_mypy_and_every_mistake_is_found(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "typos.py").write_text(TYPOS)
    (tmp_path / "mypy.ini").write_text(INI.format(root=ROOT))
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "script.py", "typos.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = re.findall(r"^(\w+\.py):(\d+): error", done.stdout, re.M)
    assert found == [("typos.py", str(line)) for line in range(3, 8)], done.stdout + done.stderr
