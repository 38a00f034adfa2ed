"""`import winnow` beside a `benchmark/`, `filters/` and `leaderboard/` of the user's own, and from the wheel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import uid, write_pool

ROOT = Path(__file__).resolve().parents[2]

# As a notebook does: no file is the main module, and the folder it runs in comes first on sys.path.
CODE = """
import json, sys
sys.path[:] = [*(["", sys.argv[3]]), *(p for p in sys.path if p not in ("", sys.argv[2]))]
import winnow as wb

assert wb.register_filter
rules = [wb.rule("random", fraction=0.5), wb.rule("basic")]
subset = wb.select(wb.open_pool(sys.argv[1]), rules, workers=int(sys.argv[4]))
board = wb.read_board("nano").to_pandas()
import benchmark, filters
print(json.dumps([len(subset), len(board), benchmark.__file__, wb.__file__, filters.THEIRS]))
"""


@pytest.fixture(scope="module")
def pool_dir(tmp_path_factory):
    texts = [f"a red square on a field number {number}" for number in range(100)]
    sides = {"original_width": [300] * 100, "original_height": [300] * 100}
    columns = {"uid": [uid(number) for number in range(100)], "text": texts, **sides}
    folder = tmp_path_factory.mktemp("pool")
    halves = [{name: values[:50] for name, values in columns.items()}]
    halves.append({name: values[50:] for name, values in columns.items()})
    return write_pool(folder / "pool", *halves)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]
    target = ["--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run([*pip, *target], check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def user_dir(tmp_path):
    return make_user_dir(tmp_path, has_packages=True)


def make_user_dir(tmp_path, *, has_packages):
    """Make a folder of a user's, with our names; with or without `__init__.py`."""
    for name in ("benchmark", "filters", "leaderboard"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "notes.py").write_text("raise RuntimeError('theirs')\n")
        if has_packages and name != "filters":
            (tmp_path / name / "__init__.py").write_text("raise RuntimeError('theirs')\n")
    (tmp_path / "filters" / "__init__.py").write_text("THEIRS = True\n")
    return tmp_path


@pytest.mark.parametrize("has_packages, installed", [(True, False), (False, False), (True, True), (False, True)])
def test_winnow_finds_its_own_packages(has_packages, installed, tmp_path, pool_dir, request):
    place = request.getfixturevalue("site") if installed else ROOT
    user_dir = make_user_dir(tmp_path / "user", has_packages=has_packages)
    workers = "2" if has_packages else "0"  # a folder without __init__ hides nothing that lies further along the path
    command = [sys.executable, "-c", CODE, str(pool_dir), str(ROOT), str(place), workers]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=user_dir, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, entries, package, module, theirs = json.loads(done.stdout.splitlines()[-1])
    assert kept == 50 and entries > 20 and theirs is True
    assert Path(package) == place / "benchmark" / "__init__.py" and Path(module) == place / "winnow.py"


def test_a_package_of_that_name_that_is_loaded_already_is_named(user_dir):
    (user_dir / "benchmark" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, ''); import benchmark; sys.path.append({str(ROOT)!r}); import winnow"
    done = subprocess.run([sys.executable, "-c", code], cwd=user_dir, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: a package 'benchmark' of "), done.stderr


def test_the_wheel_has_types(site):
    assert (site / "benchmark" / "py.typed").is_file()
    assert (site / "winnow.py").is_file() and (site / "winnow-stubs" / "__init__.pyi").is_file()
