"""Two nets for what a strategy reads and has not declared: nothing that it says is cached."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pandas as pd
import pytest

from benchmark.experiment.choice import Choice
from benchmark.experiment.filter_stage import filter_stage
from benchmark.pool.pool import Pool
from benchmark.registry import STRATEGIES, load_plugins, register_filter
from benchmark.runtime.context import Context
from benchmark.runtime.errors import UserError
from benchmark.runtime.identity import read_own_code
from benchmark.runtime.undeclared import named_in_source, spell_undeclared
from benchmark.runtime.watch import Undeclared
from benchmark.selection.engine import run_filters
from benchmark.selection.rules import Rule, filter_defaults, make_rule
from tests.conftest import loaded_plugin, uid, write_pool

ROOT = Path(__file__).resolve().parents[2]

HEAD = '''"""A filter of a list of words."""
import asyncio, os, sqlite3, tempfile, threading
from functools import lru_cache
from pathlib import Path
import pandas as pd
from benchmark import register_filter


def keep(rows, words):
    return rows["text"].fillna("").str.contains("|".join(words)).astype(bool)


'''

# Each reads words.txt, or what stands for it, in a way of its own.
READERS = {
    "at import": """
        WORDS = Path("words.txt").read_text().split()

        @register_filter(columns=["text"])
        def by_words(rows):
            return keep(rows, WORDS)
        """,
    "when asked": """
        @register_filter(columns=["text"])
        def by_words(rows):
            return keep(rows, open("words.txt").read().split())
        """,
    "behind an lru_cache": """
        @lru_cache
        def words():
            return Path("words.txt").read_text().split()

        @register_filter(columns=["text"])
        def by_words(rows):
            return keep(rows, words())
        """,
    "in its setup": """
        def load():
            return Path("words.txt").read_text().split()

        @register_filter(columns=["text"], setup=load)
        def by_words(rows, words):
            return keep(rows, words)
        """,
    "in a thread of its own": """
        @register_filter(columns=["text"])
        def by_words(rows):
            found = []
            thread = threading.Thread(target=lambda: found.extend(Path("words.txt").read_text().split()))
            thread.start()
            thread.join()
            return keep(rows, found)
        """,
    "as parquet": """
        @register_filter(columns=["text"])
        def by_words(rows):
            return keep(rows, pd.read_parquet("words.parquet")["word"])
        """,
    "in the environment": """
        @register_filter(columns=["text"])
        def by_words(rows):
            return keep(rows, os.environ["WORDS"].split())
        """,
    "in a database": """
        @register_filter(columns=["text"])
        def by_words(rows):
            return keep(rows, [word for (word,) in sqlite3.connect("words.db").execute("select * from words")])
        """,
    "of another program": """
        import subprocess

        @register_filter(columns=["text"])
        def by_words(rows):
            return keep(rows, subprocess.run(["cat", "words.txt"], capture_output=True, text=True).stdout.split())
        """,
    "in a helper": """
        from list_of_words import words

        @register_filter(columns=["text"])
        def by_words(rows):
            return keep(rows, words())
        """,
}
NAMED = {"as parquet": "words.parquet", "in the environment": "WORDS", "in a database": "words.db"}


def write_words(folder: Path, words: str) -> dict[str, str]:
    """Write the list in every form; return the environment."""
    (folder / "words.txt").write_text(words)
    pd.DataFrame({"word": words.split()}).to_parquet(folder / "words.parquet")
    (folder / "words.db").unlink(missing_ok=True)
    with sqlite3.connect(folder / "words.db") as connection:
        connection.execute("create table words (word text)")
        connection.executemany("insert into words values (?)", [[word] for word in words.split()])
    connection.close()
    return {**os.environ, "WORDS": words, "PYTHONPATH": str(ROOT)}


TEXTS = ["a red circle", "a blue square", "red and blue", "green", "blue", None]


@pytest.fixture
def place(tmp_path):
    """A folder with a pool of captions in two metadata shards, and a helper that reads a list."""
    columns = [{"uid": [uid(10 * shard + n) for n in range(6)], "text": TEXTS} for shard in range(2)]
    write_pool(tmp_path / "pool", *columns)
    (tmp_path / "list_of_words.py").write_text("def words():\n    return open('words.txt').read().split()\n")
    return tmp_path


def chosen(place: Path, environment: dict[str, str], *options: str) -> tuple[int, str]:
    """Filter as a user does; return how many were kept, and what was said."""
    command = [sys.executable, "-m", "benchmark", "filter", "scale=small", "pool_dir=pool", "plugins=by.py"]
    command += ["filters=by_words", "exp_dir=exp", *options]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "exp" / "subset.json").read_text())["result"]["size"], done.stdout + done.stderr


def undeclared_of(rule, pool_dir):
    """What a rule and its signals are known to read undeclared in this process."""
    return [read for each in rule.resolve(Pool(pool_dir)).with_signals for read in each.strategy.undeclared()]


@pytest.mark.parametrize("how", READERS)
def test_a_list_that_changed_gives_the_new_answer_and_is_named(place, how):
    (place / "by.py").write_text(HEAD + textwrap.dedent(READERS[how]))
    count, said = chosen(place, write_words(place, "red"))
    assert count == 4 and said.count("which it has not declared") == 1
    assert NAMED.get(how, "words.txt" if how != "of another program" else "the module subprocess") in said
    assert not list((place / "pool" / "signals").rglob("*.parquet"))
    count, said = chosen(place, write_words(place, "blue"))
    assert count == 6 and said.count("which it has not declared") == 1 and "up to date" not in said


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_what_a_worker_reads_is_seen_and_named(place, executor):
    """A worker is spawned, here or by Ray, and loads the plugin itself."""
    (place / "by.py").write_text(HEAD + textwrap.dedent(READERS["behind an lru_cache"]))
    spread = ["workers=2", f"executor={executor}"]
    assert chosen(place, write_words(place, "red"), *spread)[0] == 4
    assert not list((place / "pool" / "signals").rglob("*.parquet"))
    count, said = chosen(place, write_words(place, "blue"), *spread)
    assert count == 6 and said.count("reads words.txt, which it has not declared") == 1


LATE = '''
@register_filter(columns=["text"])
def by_words(rows):
    """Read the list only where a caption says so."""
    if not rows["text"].fillna("").str.contains("late").any():
        return keep(rows, ["red"])
    return keep(rows, open("words.txt").read().split())
'''


def test_values_that_earlier_shards_kept_are_dropped_and_asked_again(tmp_path):
    """The list is read for the second shard alone, which comes after a run in which nothing was read."""
    write_pool(tmp_path / "pool", {"uid": [uid(n) for n in range(6)], "text": TEXTS})
    (tmp_path / "by.py").write_text(HEAD + LATE)
    environment = write_words(tmp_path, "red")
    count, said = chosen(tmp_path, environment)
    (kept,) = (tmp_path / "pool" / "signals").glob("by_words-*/*.parquet")
    assert count == 2 and "declared" not in said
    columns = {"uid": [uid(100 + n) for n in range(2)], "text": ["late and blue", "late"]}
    pd.DataFrame(columns).to_parquet(tmp_path / "pool" / "metadata" / f"{9:032x}.parquet")
    count, said = chosen(tmp_path, write_words(tmp_path, "blue"), "exp_dir=other")
    assert "reads words.txt" in said and not kept.exists()
    assert not list((tmp_path / "pool" / "signals").rglob("*.parquet"))


def test_a_filter_that_uses_a_signal_that_reads_undeclared_is_not_kept_either(place, monkeypatch):
    code = HEAD.replace("register_filter\n", "register_filter, register_signal\n") + textwrap.dedent("""
        @register_signal(columns=["text"])
        def u_listed(rows):
            return keep(rows, open("words.txt").read().split())

        @register_filter(signals=["u_listed"])
        def u_by_signal(rows):
            return rows["u_listed"]
        """)
    monkeypatch.chdir(place)
    write_words(place, "red")
    with loaded_plugin(place / "u_signal.py", code):
        assert len(run_filters(Pool(place / "pool"), [Rule("u_by_signal")]).subset) == 4
        assert not list((place / "pool" / "signals").rglob("*.parquet"))
        write_words(place, "blue")
        assert len(run_filters(Pool(place / "pool"), [Rule("u_by_signal")]).subset) == 6


def test_a_declared_asset_is_no_undeclared_file(place, monkeypatch):
    code = HEAD + textwrap.dedent("""
        def read(path):
            return pd.read_parquet(path)["word"].tolist()

        @register_filter(columns=["text"], assets={"words": "words.parquet"})
        def u_asset(rows, *, words: str | None = None):
            return keep(rows, read(words))
        """)
    monkeypatch.chdir(place)
    write_words(place, "red")
    with loaded_plugin(place / "u_asset.py", code):
        rule = Rule("u_asset", {"words": "words.parquet"})
        assert len(run_filters(Pool(place / "pool"), [rule]).subset) == 4
        assert len(list((place / "pool" / "signals").glob("u_asset-*/*.parquet"))) == 2
        assert not undeclared_of(rule, place / "pool")


def test_what_it_writes_itself_and_what_lies_in_packages_is_not_counted(place, monkeypatch):
    code = HEAD + textwrap.dedent("""
        import pandas

        @register_filter(columns=["text"])
        def u_writes(rows):
            with tempfile.NamedTemporaryFile("w") as file:
                file.write("red")
                file.flush()
                words = Path(file.name).read_text().split()
            Path("made.txt").write_text("red")
            assert Path("made.txt").read_text() == "red" and Path("/proc/self/stat").read_text()
            assert Path(pandas.__file__).read_text()
            return keep(rows, words)
        """)
    monkeypatch.chdir(place)
    with loaded_plugin(place / "u_writes.py", code):
        assert len(run_filters(Pool(place / "pool"), [Rule("u_writes")]).subset) == 4
        assert not undeclared_of(Rule("u_writes"), place / "pool")


def test_what_another_thread_reads_meanwhile_is_not_counted(place, monkeypatch):
    """As our own threads that read ahead do."""
    code = HEAD + textwrap.dedent("""
        STEPS = []

        @register_filter(columns=["text"])
        def u_waits(rows):
            for step in STEPS:
                step()
            return keep(rows, ["red"])
        """)
    monkeypatch.chdir(place)
    write_words(place, "red")
    asked, done = threading.Event(), threading.Event()

    def read():
        asked.wait(600)
        Path("words.txt").read_text()
        done.set()

    with loaded_plugin(place / "u_waits.py", code):
        steps = STRATEGIES["u_waits"].function.__wrapped__.__globals__["STEPS"]
        thread = threading.Thread(target=read)
        thread.start()
        steps += [asked.set, lambda: done.wait(600)]
        assert len(run_filters(Pool(place / "pool"), [Rule("u_waits")]).subset) == 4
        thread.join()
        assert done.is_set() and not undeclared_of(Rule("u_waits"), place / "pool")


def test_a_server_that_is_asked_is_named(place, monkeypatch):
    """Connected to through a module that the source does not name."""
    code = HEAD + textwrap.dedent("""
        @register_filter(columns=["text"])
        def u_asks(rows):
            async def ask():
                _, writer = await asyncio.open_connection("127.0.0.1", int(Path(__file__).stem.split("_")[-1]))
                writer.close()

            asyncio.run(ask())
            return keep(rows, ["red"])
        """)
    monkeypatch.chdir(place)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with loaded_plugin(place / f"u_asks_{port}.py", code):
            run_filters(Pool(place / "pool"), [Rule("u_asks")])
            (found,) = undeclared_of(Rule("u_asks"), place / "pool")
    assert found == Undeclared("server", f"127.0.0.1:{port}")


def test_a_signal_that_declares_its_server_is_kept(place, monkeypatch):
    """With the key to it; another variable of the environment counts as ever."""
    code = HEAD.replace("register_filter\n", "register_filter, register_signal\n") + textwrap.dedent("""
        import socket

        @register_signal(columns=["text"], asks_server=True)
        def u_answers(rows):
            socket.create_connection(("127.0.0.1", int(Path(__file__).stem.split("_")[-1]))).close()
            return keep(rows, [os.environ.get("SOME_API_KEY", "red")])

        @register_filter(signals=["u_answers"])
        def u_by_answers(rows):
            return rows["u_answers"]
        """)
    monkeypatch.chdir(place)
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = f"u_answers_{server.getsockname()[1]}.py"
        with loaded_plugin(place / name, code):
            assert len(run_filters(Pool(place / "pool"), [Rule("u_by_answers")]).subset) == 4
            assert not undeclared_of(Rule("u_by_answers"), place / "pool")
            assert len(list((place / "pool" / "signals").glob("u_answers-*/*.parquet"))) == 2
        (place / "u_other.py").write_text(
            code.replace("SOME_API_KEY", "WORDS").replace("u_answers", "v_answers").replace("u_by", "v_by")
        )
        load_plugins([place / "u_other.py"])
        assert Rule("v_answers").strategy.undeclared() == [Undeclared("variable", "WORDS")]


def test_an_experiment_whose_subset_came_out_differently_is_not_put_under_its_checkpoints(place, monkeypatch):
    monkeypatch.chdir(place)
    write_words(place, "red")
    with loaded_plugin(
        place / "u_again.py", HEAD + textwrap.dedent(READERS["when asked"]).replace("by_words", "u_again")
    ):
        choice = Choice(rules=(Rule("u_again"),))

        def choose():
            return filter_stage(place / "exp", Pool(place / "pool"), choice, Context())

        first = choose()
        assert first.result["undeclared"] == {"u_again": [["file", "words.txt"]]}
        before = (place / "exp" / "subset.npy").read_bytes()
        (place / "exp" / "shards").mkdir()
        assert choose().result["sha256"] == first.result["sha256"]
        write_words(place, "blue")
        with pytest.raises(UserError) as caught:
            choose()
        assert caught.value.code == "undeclared-changed"
        assert (place / "exp" / "subset.npy").read_bytes() == before
        assert not list((place / "exp").glob("subset-again*"))
        (place / "exp" / "shards").rmdir()
        assert choose().result["size"] == 6


# --- The net in the source ------------------------------------------------------------------------------------------


HANDED_ON = "import pandas as pd\ndef g(path):\n    return pd.read_parquet(path)\ndef f(rows, *, words=None):\n"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nX = os.environ.get('A')\n", [("variable", "A")]),
        ("import os as o\nX = o.getenv('A')\n", [("variable", "A")]),
        ("from os import environ\nX = 'A' in environ\n", [("variable", "A")]),
        ("import os\nX = dict(os.environ)\n", [("variable", "os.environ")]),
        ("import requests\n", [("server", "the module requests")]),
        ("def f():\n    from urllib.request import urlopen\n", [("server", "the module urllib.request")]),
        ("from urllib.parse import urlparse\nimport os.path\n", []),
        ("import os\nos.system('ls')\n", [("process", "os.system")]),
        (
            "from concurrent.futures import ProcessPoolExecutor as P\nP()\n",
            [("process", "concurrent.futures.ProcessPoolExecutor")],
        ),
        ("import importlib\nimportlib.import_module(X)\n", [("code", "a module whose name is computed")]),
        ("import importlib\nimportlib.import_module('words')\n", []),
        (
            "import pandas as pd\nX = pd.read_parquet('a.parquet')\n",
            [("file", "a.parquet (line 2 of x.py, by pandas.read_parquet)")],
        ),
        ("from pandas import read_parquet as r\ndef f(rows, *, words=None):\n    return r(words)\n", []),
        (
            "import pandas as pd\ndef f(rows, *, words=None):\n    return pd.read_parquet(path='b')\n",
            [("file", "b (line 3 of x.py, by pandas.read_parquet)")],
        ),
        (
            f"{HANDED_ON}    g(words)\n",
            [],
        ),
        (
            f"{HANDED_ON}    g(words)\n    g('c')\n",
            [("file", "path (line 3 of x.py, by pandas.read_parquet)")],
        ),
        (
            "import pyarrow.parquet as pq\n"
            "def f(rows, *, words=None):\n    for each in words:\n        pq.ParquetFile(each)\n",
            [],
        ),
        ("import pandas as pd\nread = pd.read_parquet\n", [("file", "what pandas.read_parquet is handed")]),
        ("import io\nimport pandas as pd\npd.read_parquet(io.BytesIO(b''))\n", []),
        (
            "from safetensors.numpy import load_file\nload_file('w')\n",
            [("file", "w (line 2 of x.py, by safetensors.numpy.load_file)")],
        ),
        ("import polars as pl\npl.scan_csv(X)\n", [("file", "X (line 2 of x.py, by polars.scan_csv)")]),
        (
            "from transformers import AutoModel\nAutoModel.from_pretrained('m')\n",
            [("file", "m (line 2 of x.py, by from_pretrained)")],
        ),
        ("import os\nX = os.path.expandvars('$A/b')\n", [("variable", "$A/b")]),
        (
            "import os.path as p\nX = open('a') if p.exists('a') else ()\n",
            [("file", "a (line 2 of x.py, by os.path.exists)")],
        ),
        ("import glob\nX = len(glob.glob('*.txt'))\n", [("file", "*.txt (line 2 of x.py, by glob.glob)")]),
        (
            "from pathlib import Path\nA = Path('a')\nX = A.exists()\n",
            [("file", "A (line 3 of x.py, by exists)")],
        ),
        (
            "import os\nfrom pathlib import Path\ndef f(rows, *, words=None):\n"
            "    return words and os.path.isfile(words) and Path(words).exists()\n",
            [],
        ),
        ("import pyarrow as pa\nimport pyarrow.dataset as ds\nX = ds.field('a')\nY = pa.array([1])\n", []),
    ],
)
def test_the_source_names_what_no_hook_sees(tmp_path, source, found):
    (tmp_path / "x.py").write_text(source)
    named = named_in_source(read_own_code(tmp_path / "x.py"), {"words"})
    assert [(each.kind, each.name) for each in named] == found


def test_helpers_are_looked_through_and_hand_on_assets(tmp_path):
    (tmp_path / "reading.py").write_text("import pandas as pd\ndef read(path):\n    return pd.read_parquet(path)\n")
    (tmp_path / "x.py").write_text("import reading\ndef f(rows, *, words=None):\n    return reading.read(words)\n")
    assert not named_in_source(read_own_code(tmp_path / "x.py"), {"words"})
    (found,) = named_in_source(read_own_code(tmp_path / "x.py"), set())
    assert found.name == "path (line 3 of reading.py, by pandas.read_parquet)"


def test_the_line_says_how_to_declare_it():
    told = spell_undeclared("filter 'mine'", [Undeclared("file", "lists/words.txt"), Undeclared("file", "b")])
    assert "filter 'mine'" in told and "lists/words.txt and 1 more" in told
    assert 'assets={"words": "words.txt"}' in told and "`words: str | None = None`" in told


# --- Shipped strategies, scripts and loading anew --------------------------------------------------------------------


def test_no_shipped_strategy_is_taken_for_one_that_reads_undeclared(strategies, tmp_path, pico_pool):
    """All of them, run on `pico` with their defaults."""
    pool = Pool(pico_pool, signals_dir=tmp_path)
    for name in sorted(strategies):
        if strategies[name].kind == "signal" or strategies[name].source_path.parent != ROOT / "filters":
            continue
        rule = make_rule(name, filter_defaults(strategies[name]))
        run_filters(pool, [rule])
        assert not undeclared_of(rule, pool.dir), name


def test_a_filter_of_a_script_runs_here_is_registered_again_and_keeps_nothing(tmp_path, capsys):
    pool = write_pool(tmp_path / "pool", {"uid": [uid(n) for n in range(6)], "score": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})

    def again(limit):
        @register_filter(columns=["score"])
        def u_in_a_cell(rows):
            return rows["score"] > limit

        choice = Choice(rules=(Rule("u_in_a_cell"),))
        return filter_stage(tmp_path / f"exp-{limit}", Pool(pool), choice, Context(workers=2)).result["size"]

    try:
        assert [again(2), again(4)] == [4, 2]
        assert "filter 'u_in_a_cell' is of a script or notebook" in capsys.readouterr().err
        assert not list((pool / "signals").rglob("*.parquet"))
    finally:
        del STRATEGIES["u_in_a_cell"]


def test_a_plugin_that_changed_is_run_anew_with_its_helpers_and_its_models(tmp_path):
    pool = Pool(write_pool(tmp_path / "pool", {"uid": [uid(n) for n in range(6)], "score": [1.0, 2, 3, 4, 5, 6]}))
    code = textwrap.dedent('''
        """Words."""
        from benchmark import register_filter
        from limits_of_it import LIMIT

        def load():
            return LIMIT + {0}

        @register_filter(columns=["score"], setup=load)
        def u_anew(rows, limit):
            return rows["score"] > limit
        ''')
    helper = tmp_path / "limits_of_it.py"
    helper.write_text("LIMIT = 1\n")
    with loaded_plugin(tmp_path / "u_anew.py", code.format(0)) as path:
        sizes = []
        for text, limit in ((code.format(0), 1), (code.format(1), 1), (code.format(1), 3), (code.format(0), 3)):
            path.write_text(text)
            helper.write_text(f"LIMIT = {limit}\n")
            load_plugins([path])
            sizes.append(len(run_filters(pool, [Rule("u_anew")]).subset))
        assert sizes == [5, 4, 2, 3]
        before = STRATEGIES["u_anew"].function
        load_plugins([path])
        assert STRATEGIES["u_anew"].function is before
        path.write_text("1 / 0")
        with pytest.raises(UserError) as caught:
            load_plugins([path])
        assert caught.value.code == "bad-code" and "u_anew" not in STRATEGIES
        path.write_text(code.format(0))
        load_plugins([path])
        assert "u_anew" in STRATEGIES
