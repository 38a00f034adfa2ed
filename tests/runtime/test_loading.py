"""A user's file imports what stands beside it, sees nothing that stands beside another, and hinders no healthy one."""

import subprocess
import sys
import textwrap

import pytest

from benchmark.pool.pool import Pool
from benchmark.registry import BROKEN, STRATEGIES, get_strategy, load_plugins, register_filter
from benchmark.runtime.errors import UserError
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Rule
from tests.conftest import loaded_plugin, uid, user_error, write_pool

HEAD = '"""Words."""\nfrom benchmark import register_filter, register_selector\n'


@pytest.fixture
def pool(tmp_path):
    columns = {"uid": [uid(n) for n in range(6)], "score": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    return Pool(write_pool(tmp_path / "pool", columns))


def plugin_of(folder, name, limit, body="import limits\nLIMIT = limits.LIMIT\n"):
    """Write a plugin that keeps what is above its folder's limit."""
    folder.mkdir(exist_ok=True)
    (folder / "limits.py").write_text(f"LIMIT = {limit}\n")
    code = f'{body}\n\n@register_filter(columns=["score"])\ndef {name}(rows):\n    return rows["score"] > LIMIT\n'
    return folder / f"{name}.py", HEAD + code


@pytest.mark.parametrize("workers", [0, 1])
def test_helpers_of_one_name_in_two_folders_stay_apart(tmp_path, pool, workers):
    (one, first), (two, second) = plugin_of(tmp_path / "one", "l_one", 1), plugin_of(tmp_path / "two", "l_two", 4)
    path = list(sys.path)
    with loaded_plugin(one, first), loaded_plugin(two, second):
        for name, size in (("l_one", 5), ("l_two", 2)):
            found = run_filters(pool, [Rule(name)], workers=workers, plugins=[str(one), str(two)])
            assert len(found.subset) == size
    assert "limits" not in sys.modules and sys.path == path
    with pytest.raises(ImportError):
        import limits  # noqa: F401


@pytest.mark.parametrize(
    "body",
    [
        "from limits import LIMIT\n",
        "from .limits import LIMIT\n",
        "from . import limits\nLIMIT = limits.LIMIT\n",
        "from pack.inner import LIMIT\n",
        "import pack.inner\nLIMIT = pack.inner.LIMIT\n",
        "import pack.inner as inner\nLIMIT = inner.LIMIT\n",
        "from folder.inner import LIMIT\n",
        "import importlib\nLIMIT = importlib.import_module('.limits', __package__).LIMIT\n",
    ],
)
def test_helpers_are_imported_in_every_way(tmp_path, pool, body):
    for name in ("pack", "folder"):
        (tmp_path / "p" / name).mkdir(parents=True)
        (tmp_path / "p" / name / "inner.py").write_text("from limits import LIMIT\n")
    (tmp_path / "p" / "pack" / "__init__.py").write_text("")
    path, code = plugin_of(tmp_path / "p", "l_ways", 2, body)
    with loaded_plugin(path, code):
        assert len(run_filters(pool, [Rule("l_ways")]).subset) == 4


def test_a_helper_is_imported_when_the_filter_is_asked_as_it_was_when_the_file_was_loaded(tmp_path, pool):
    path, code = plugin_of(tmp_path / "p", "l_late", 2, "")
    code = code.replace("    return", "    from limits import LIMIT\n    return")
    with loaded_plugin(path, code):
        before = STRATEGIES["l_late"].identity
        (tmp_path / "p" / "limits.py").write_text("LIMIT = 5\n")
        assert len(run_filters(pool, [Rule("l_late")]).subset) == 4
        load_plugins([path])
        assert STRATEGIES["l_late"].identity != before
        assert len(run_filters(pool, [Rule("l_late")]).subset) == 1


def test_a_file_beside_hides_neither_the_standard_library_nor_itself_the_package_of_its_name(tmp_path, pool):
    path, code = plugin_of(tmp_path / "p", "l_names", 2, "import random, tqdm\nLIMIT = random.randint(2, 2)\n")
    (tmp_path / "p" / "random.py").write_text("1 / 0\n")
    path = path.with_name("tqdm.py")
    with loaded_plugin(path, code):
        assert len(run_filters(pool, [Rule("l_names")]).subset) == 4


def test_the_healthy_ones_of_a_file_are_registered_and_the_broken_one_is_refused_with_its_reason(tmp_path, pool):
    path, code = plugin_of(tmp_path / "p", "l_healthy", 2)
    code += "\n\n@register_selector()\ndef l_seedless(pool):\n    ...\n"
    code += "\n\n@register_filter(fraction=0.1, threshold=0.1)\ndef l_two_cuts(rows):\n    ...\n"
    with loaded_plugin(path, code):
        assert len(run_filters(pool, [Rule("l_healthy")]).subset) == 4
        for name, reason in (("l_seedless", "`seed"), ("l_two_cuts", "fraction= or threshold=")):
            with user_error("broken-strategy", match=reason) as caught:
                get_strategy(name)
            assert str(path) in str(caught.value)
        done = subprocess.run(
            [sys.executable, "-m", "benchmark", "list", "filters", "--plugins", str(path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "l_healthy" in done.stdout
        assert "l_seedless" in done.stdout and "l_two_cuts" in done.stdout
        path.write_text(code.replace("def l_seedless(pool)", "def l_seedless(pool, *, seed: int = 0)"))
        load_plugins([path])
        assert "l_seedless" in STRATEGIES and set(BROKEN) == {"l_two_cuts"}
        path.write_text(HEAD)
        load_plugins([path])
        assert not BROKEN and "l_healthy" not in STRATEGIES


def test_a_name_registered_twice_says_whether_in_one_file_or_two(tmp_path):
    path, code = plugin_of(tmp_path / "p", "l_twice", 2)
    again = code + code[code.index("\n\n@register") :]
    path.write_text(again)
    with user_error("bad-code", match=r"l_twice\.py.*'l_twice'.*\d+ and \d+"):
        load_plugins([path])
    assert "l_twice" not in STRATEGIES
    with loaded_plugin(path, code):
        with user_error("bad-code", match="'l_twice'.*p/"):
            load_plugins([_copy(path, tmp_path / "other.py")])
        assert STRATEGIES["l_twice"].source_path == path


def _copy(path, to):
    to.write_text(path.read_text().replace("import limits", "").replace("limits.LIMIT", "1"))
    return to


def test_a_cell_that_is_run_again_replaces_its_filter_and_no_other_files(tmp_path, strategies):
    def cell(value):
        @register_filter()
        def l_cell(rows):
            return value

    try:
        cell(1)
        cell(2)
        assert STRATEGIES["l_cell"].function(None) == 2 and STRATEGIES["l_cell"].identity is None
    finally:
        del STRATEGIES["l_cell"]

    def basic(rows): ...

    with pytest.raises(UserError) as caught:
        register_filter()(basic)
    assert caught.value.code == "name-taken" and "basic.py" in str(caught.value)


def test_a_plugin_that_is_imported_by_another_is_one_module_and_may_be_loaded_itself(tmp_path, pool):
    path, code = plugin_of(tmp_path / "p", "l_inner", 2)
    outer = HEAD + textwrap.dedent(
        """
        from l_inner import l_inner, LIMIT

        @register_filter(columns=["score"])
        def l_outer(rows):
            return l_inner(rows) & (rows["score"] < 2 * LIMIT + 1)
        """
    )
    path.write_text(code)
    with loaded_plugin(tmp_path / "p" / "l_outer.py", outer), loaded_plugin(path, code):
        assert len(run_filters(pool, [Rule("l_outer")]).subset) == 2
        assert len(run_filters(pool, [Rule("l_inner")]).subset) == 4


def test_a_module_whose_name_is_computed_is_noticed(tmp_path, pool):
    """It is found by its relative name; what it is, no syntax tree says."""
    body = "import importlib\nLIMIT = importlib.import_module('.lim' + 'its', __package__).LIMIT\n"
    path, code = plugin_of(tmp_path / "p", "l_computed", 2, body)
    with loaded_plugin(path, code):
        assert {each.kind for each in STRATEGIES["l_computed"].undeclared()} == {"code"}
        assert len(run_filters(pool, [Rule("l_computed")]).subset) == 4
        assert not list((tmp_path / "pool" / "signals").rglob("*.parquet"))
