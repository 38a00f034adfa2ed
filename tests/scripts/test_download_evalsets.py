"""Downloading evaluation sets, by the real huggingface_hub, from a hub on this machine."""

import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from benchmark.evaluation.tasks import Retrieval, Suite, ZeroShotClassification
from benchmark.registry import SUITES, TASKS
from benchmark.runtime.files import followed_renames
from scripts import download_evalsets

ROOT = Path(__file__).resolve().parents[2]
CARS, DIGITS, PAIRS = "toy/cars", "toy/digits", "toy/pairs"
FOLDER = "wds_toy-cars_test"
REPO = f"djghosh/{FOLDER}"
ROWS_REPO = "somebody/pairs"
FIRST, SECOND, CONVERTED = "1" * 40, "2" * 40, "c" * 40


def tar(number, size=200_000):
    return np.random.default_rng(number).bytes(size)


def tar_set(seed, *, count=2, said=None):
    """Return the files of a set in webdataset form, as the hub's repository has them."""
    files = {
        ".gitattributes": b"*.tar filter=lfs",
        "README.md": b"# a set",
        "classnames.txt": b"one\ntwo\n",
        "zeroshot_classification_templates.txt": b"a photo of a {c}.\n",
        "test/nshards.txt": str(count if said is None else said).encode(),
    }
    return files | {f"test/{number}.tar": tar(10 * seed + number) for number in range(count)}


class Hub(http.server.ThreadingHTTPServer):
    """A hub: `repos` has the files of each repository's commits, `revisions` what the branches name."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Page)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.revisions: dict[str, dict[str, str]] = {}
        self.asked: list[SimpleNamespace] = []
        self.sent: dict[str, bytes] = {}  # path -> other bytes than listed
        self.stop_after: dict[str, int] = {}  # path -> bytes after which the connection ends, once
        self.hold = None  # an event: what is stopped waits for it instead of ending
        self.gated = set()

    def add(self, repo, files, commit=FIRST, revision="main"):
        self.repos.setdefault(repo, {})[commit] = files
        self.revisions.setdefault(repo, {})[revision] = commit

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files_asked(self):
        """Return what was fetched: (name, range)."""
        return [(each.path.split(f"/{FIRST}/")[-1], each.range) for each in self.asked if "/resolve/" in each.path]


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        self.asked = SimpleNamespace(
            path=path,
            range=self.headers.get("Range"),
            host=self.headers["Host"].split(":")[0],
            token=self.headers.get("Authorization"),
        )
        hub.asked.append(self.asked)
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            self.answer_api(*match.groups())
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            repo, commit, name = match.groups()
            if repo in hub.gated and self.asked.token != "Bearer secret":
                self.send_error(401)
            elif name not in hub.repos[repo][commit]:
                self.send_error(404)
            elif name.endswith((".tar", ".parquet")):  # as the hub does: large files come from another host
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{hub.server_port}/store{path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.answer_bytes(name, hub.repos[repo][commit][name])
        elif match := re.fullmatch(r"/store/datasets/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            repo, commit, name = match.groups()
            self.answer_bytes(name, hub.repos[repo][commit][name])
        else:
            self.send_error(404)

    def answer_api(self, repo, what, revision):
        commits = {commit: commit for commit in self.server.repos.get(repo, {})}
        commit = (commits | self.server.revisions.get(repo, {})).get(revision)
        if commit is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if commits else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if what == "revision":
            self.answer_json({"id": repo, "sha": commit})
            return
        entries = [listed(name, data) for name, data in self.server.repos[repo][commit].items()]
        entries.append({"type": "directory", "path": "test", "oid": "0" * 40})
        page = int(urlsplit(self.path).query.partition("page=")[2] or 0)
        more = {}
        if 4 * (page + 1) < len(entries):
            more["Link"] = f'<{self.server.url}{urlsplit(self.path).path}?page={page + 1}>; rel="next"'
        self.answer_json(entries[4 * page : 4 * (page + 1)], more)

    def answer_json(self, value, headers=()):
        body = json.dumps(value).encode()
        self.send_response(200)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **dict(headers),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def answer_bytes(self, name, data):
        hub = self.server
        data = hub.sent.get(name, data)
        start = int(re.fullmatch(r"bytes=(\d+)-", self.asked.range)[1]) if self.asked.range else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        stop = hub.stop_after.pop(name, None)
        self.wfile.write(data[start : None if stop is None else start + stop])
        if stop is not None and hub.hold is not None:
            hub.hold.wait(30)

    def log_message(self, *_): ...


def listed(name, data):
    entry = {"type": "file", "path": name, "size": len(data)}
    if name.endswith((".tar", ".parquet")):
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry | {"oid": "f" * 40, "lfs": lfs}
    return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with two sets in webdataset form and one of rows, and the tasks to them: the suite `toy`."""
    import huggingface_hub.constants

    with Hub() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        tasks = [
            ZeroShotClassification(name=CARS, title="Cars", groups=("vehicles",)),
            ZeroShotClassification(name=DIGITS, title="Digits"),
            Retrieval(name=PAIRS, title="Pairs", hub_rows=ROWS_REPO),
        ]
        for task in tasks:
            monkeypatch.setitem(TASKS, task.name, task)
        monkeypatch.setitem(SUITES, "toy", Suite(name="toy", version=1, tasks=(CARS, DIGITS, PAIRS)))
        monkeypatch.setattr(download_evalsets, "SUITE", "toy")
        running.add(REPO, tar_set(1))
        running.add("djghosh/wds_toy-digits_test", tar_set(2, count=1))
        running.add(ROWS_REPO, {"pairs.py": b"code", "pairs.csv": b"a,b"})
        running.add(
            ROWS_REPO,
            {"TEST/test/0000.parquet": tar(30), "TEST/test/0001.parquet": tar(31)},
            CONVERTED,
            "refs/convert/parquet",
        )
        yield running
        running.shutdown()


def run(out, *arguments):
    return download_evalsets.main(["--out", str(out), *map(str, arguments)])


def files(folder):
    """Return the files below a folder with their bytes, but the record and locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("download.json", ".lock")
    }


def of_set(repository):
    return {name: data for name, data in repository.items() if name not in (".gitattributes", "README.md")}


def stored(hub, repo=REPO, commit=FIRST):
    return of_set(hub.repos[repo][commit])


def test_all_sets_of_the_suite_come_whole(hub, tmp_path, capsys):
    assert run(tmp_path / "sets") == 0
    assert files(tmp_path / "sets") == {
        **{
            f"{FOLDER}/{name}": data for name, data in tar_set(1).items() if name not in (".gitattributes", "README.md")
        },
        **{f"wds_toy-digits_test/{name}": data for name, data in of_set(tar_set(2, count=1)).items()},
        f"hf_cache/somebody___pairs/{CONVERTED}/0000.parquet": tar(30),
        f"hf_cache/somebody___pairs/{CONVERTED}/0001.parquet": tar(31),
    }
    assert not [*(tmp_path / "sets").rglob(".partial")]
    record = json.loads((tmp_path / "sets" / FOLDER / "download.json").read_text())
    assert (record["repo"], record["revision"], record["commit"]) == (REPO, "main", FIRST)
    assert {name: (file["size"], file["sha256"]) for name, file in record["files"].items()} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in of_set(tar_set(1)).items()
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5].split() == ["toy/cars", "5", "0.000", "5", "0", "(2", "other", "files", "left", "out)"]
    assert lines[-2].split() == ["all", "11", "0.001", "11", "0"]
    assert lines[-1] == f"winnow evaluate model=... checkpoint=... eval_dir={tmp_path / 'sets'} out_dir=... tasks=[toy]"


def test_a_second_run_asks_for_nothing_and_reads_nothing(hub, tmp_path, capsys, monkeypatch):
    assert run(tmp_path) == 0
    hub.asked.clear()
    monkeypatch.setattr("scripts.download.fetch_evalsets._is_large", None)
    monkeypatch.setattr(
        "scripts.download.evalsets.file_hash",
        lambda path, state: hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".txt" else 1 / 0,
    )
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[-2].split() == ["all", "11", "0.001", "0", "11"]
    assert hub.asked == []


def test_what_says_that_a_set_is_whole_comes_last(hub, tmp_path):
    names = []
    with followed_renames(lambda _, target: names.append(target.name)):
        assert run(tmp_path, "--tasks", CARS) == 0
        assert names[-1] == "nshards.txt" and {"0.tar", "1.tar", "classnames.txt"} <= set(names[:-1])
        names.clear()
        assert run(tmp_path, "--tasks", PAIRS) == 0
        assert names[-1] == "download.json" and {"0000.parquet", "0001.parquet"} <= set(names[:-1])


def test_names_and_groups_narrow(hub, tmp_path, capsys):
    assert run(tmp_path, "--tasks", "vehicles") == 0
    assert {name.split("/")[0] for name in files(tmp_path)} == {FOLDER}
    assert run(tmp_path, "--tasks", "vehicels") == 2
    assert "unknown task or group 'vehicels'. Did you mean 'vehicles'?" in capsys.readouterr().err


def test_ones_own_task_file_is_fetched_from_its_owner(hub, tmp_path, monkeypatch):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from benchmark import register_task\nfrom benchmark.evaluation.tasks import ZeroShotClassification\n"
        "register_task(ZeroShotClassification(name='toy/plants', title='Plants'))\n"
    )
    hub.add("me/wds_toy-plants_test", tar_set(4))
    try:
        assert run(tmp_path / "sets", "--plugins", plugin, "--tasks", "toy/plants", "--owner", "me") == 0
    finally:
        TASKS.pop("toy/plants", None)
    assert files(tmp_path / "sets" / "wds_toy-plants_test") == of_set(tar_set(4))


def test_what_breaks_off_is_gone_on_with(hub, tmp_path, capsys):
    hub.stop_after["test/1.tar"] = 150_000
    assert run(tmp_path, "--tasks", CARS, DIGITS) == 3
    said = capsys.readouterr()
    assert "1 of 2 sets failed" in said.err and "1.tar broke off after 150,000 of 200,000 bytes" in said.err
    assert [line.split()[-1] for line in said.out.splitlines() if line.startswith(CARS)] == ["failed"]
    assert not (tmp_path / FOLDER / "test" / "nshards.txt").exists()
    assert files(tmp_path / "wds_toy-digits_test") == of_set(tar_set(2, count=1))
    hub.asked.clear()
    assert run(tmp_path, "--tasks", CARS, DIGITS) == 0
    assert files(tmp_path / FOLDER) == stored(hub)
    assert hub.files_asked() == [("test/nshards.txt", None), *2 * [("test/1.tar", "bytes=150000-")]]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_ends_at_once_and_is_gone_on_with(hub, tmp_path, number, status):
    hub.stop_after["test/1.tar"], hub.hold = 150_000, threading.Event()
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from benchmark import register_task\nfrom benchmark.evaluation.tasks import ZeroShotClassification\n"
        f"register_task(ZeroShotClassification(name={CARS!r}, title='Cars'))\n"
    )
    command = [sys.executable, str(ROOT / "scripts" / "download_evalsets.py"), "--out", str(tmp_path / "sets")]
    process = subprocess.Popen(
        [*command, "--plugins", str(plugin), "--tasks", CARS],
        env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell's background began
    )
    part, first = tmp_path / "sets" / FOLDER / ".partial", tmp_path / "sets" / FOLDER / "test" / "0.tar"
    while process.poll() is None and not (
        first.exists() and any(path.stat().st_size == 150_000 for path in part.rglob("1.tar.part"))
    ):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(600) == status
    hub.hold.set()
    assert not (tmp_path / "sets" / FOLDER / "test" / "nshards.txt").exists()
    hub.asked.clear()
    assert run(tmp_path / "sets", "--tasks", CARS) == 0
    assert files(tmp_path / "sets" / FOLDER) == stored(hub)
    assert hub.files_asked() == [("test/nshards.txt", None), *2 * [("test/1.tar", "bytes=150000-")]]


def test_a_set_that_is_not_at_the_hub_stops_no_other(hub, tmp_path, capsys):
    del hub.repos[REPO], hub.revisions[REPO]
    assert run(tmp_path) == 3
    said = capsys.readouterr().err
    assert (
        "error: 1 of 3 sets failed" in said and f"toy/cars: the hub has no data set '{REPO}' that you may read" in said
    )
    assert files(tmp_path / "wds_toy-digits_test") == of_set(tar_set(2, count=1))
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(("said", "count"), [(1, 2), (3, 2), ("two", 2)])
def test_a_count_that_is_not_that_of_the_tars_is_an_error(hub, tmp_path, capsys, said, count):
    hub.add(REPO, tar_set(1, count=count, said=said))
    assert run(tmp_path, "--tasks", CARS) == 3
    assert f"test/nshards.txt of {REPO} says '{said}' and the repository has 2 tars" in capsys.readouterr().err
    assert files(tmp_path) == {}


def test_a_gap_in_the_tars_is_an_error(hub, tmp_path, capsys):
    repository = tar_set(1)
    repository["test/2.tar"] = repository.pop("test/0.tar")
    hub.add(REPO, repository)
    assert run(tmp_path, "--tasks", CARS) == 3
    assert "says '2' and the repository has 2 tars, without test/0.tar" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["test/1.tar", "classnames.txt"])
def test_other_bytes_are_an_error_until_they_are_to_be_replaced(hub, tmp_path, capsys, name):
    assert run(tmp_path, "--tasks", CARS) == 0
    (tmp_path / FOLDER / name).write_bytes(b"mine")
    hub.asked.clear()
    assert run(tmp_path, "--tasks", CARS) == 3
    assert f"{tmp_path / FOLDER / name} is not what {REPO} has at the commit {FIRST}; give" in capsys.readouterr().err
    assert (tmp_path / FOLDER / name).read_bytes() == b"mine" and hub.asked == []
    assert run(tmp_path, "--tasks", CARS, "--replace") == 0
    assert files(tmp_path / FOLDER) == stored(hub)
    assert {asked for asked, _ in hub.files_asked()} == {name}


def test_a_tar_that_is_not_the_sets_is_an_error_until_it_is_to_be_replaced(hub, tmp_path, capsys):
    assert run(tmp_path, "--tasks", CARS) == 0
    (tmp_path / FOLDER / "test" / "2.tar").write_bytes(b"mine")
    assert run(tmp_path, "--tasks", CARS) == 3
    assert "test/2.tar is not what" in capsys.readouterr().err
    assert run(tmp_path, "--tasks", CARS, "--replace") == 0
    assert files(tmp_path / FOLDER) == stored(hub)


def test_files_that_came_by_another_way_are_taken_as_they_are(hub, tmp_path):
    for name, data in stored(hub).items():
        (tmp_path / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / FOLDER / name).write_bytes(data)
    assert run(tmp_path, "--tasks", CARS) == 0
    assert hub.files_asked() == []
    assert json.loads((tmp_path / FOLDER / "download.json").read_text())["files"]["test/1.tar"]["sha256"]
    assert files(tmp_path / FOLDER) == stored(hub)


def test_a_set_with_a_hole_is_not_whole_while_the_rest_comes(hub, tmp_path):
    assert run(tmp_path, "--tasks", CARS) == 0
    (tmp_path / FOLDER / "test" / "0.tar").unlink()
    hub.stop_after["test/0.tar"] = 10
    assert run(tmp_path, "--tasks", CARS) == 3
    assert not (tmp_path / FOLDER / "test" / "nshards.txt").exists()
    assert run(tmp_path, "--tasks", CARS) == 0
    assert files(tmp_path / FOLDER) == stored(hub)


def test_a_begun_set_keeps_its_commit_until_a_revision_is_named(hub, tmp_path, capsys):
    hub.stop_after["test/1.tar"] = 10
    assert run(tmp_path, "--tasks", CARS) == 3
    hub.add(REPO, tar_set(5, count=1), SECOND)
    assert run(tmp_path, "--tasks", CARS) == 0
    assert files(tmp_path / FOLDER) == of_set(tar_set(1))
    assert run(tmp_path, "--tasks", CARS, "--revision", "main") == 3
    assert f"has at the commit {SECOND}" in capsys.readouterr().err
    assert files(tmp_path / FOLDER) == of_set(tar_set(1))
    assert run(tmp_path, "--tasks", CARS, "--revision", "main", "--replace") == 0
    assert files(tmp_path / FOLDER) == of_set(tar_set(5, count=1))
    assert json.loads((tmp_path / FOLDER / "download.json").read_text())["commit"] == SECOND


def test_a_revision_that_is_not_there_is_named(hub, tmp_path, capsys):
    assert run(tmp_path, "--tasks", CARS, "--revision", "v7") == 3
    assert f"the data set {REPO} has no revision 'v7' at the hub" in capsys.readouterr().err


def test_rows_of_the_repository_itself_are_those_of_the_split_test(hub, tmp_path):
    repository = {
        "data/train-00000.parquet": tar(40),
        "data/test-00000-of-00001.parquet": tar(41),
        "latest.parquet": b"x",
    }
    hub.add(ROWS_REPO, repository)
    assert run(tmp_path, "--tasks", PAIRS) == 0
    place = tmp_path / "hf_cache" / "somebody___pairs"
    assert files(place) == {f"{FIRST}/test-00000-of-00001.parquet": tar(41)}
    assert json.loads((place / FIRST / "download.json").read_text())["files"] == {
        "test-00000-of-00001.parquet": {
            "path": "data/test-00000-of-00001.parquet",
            "size": 200_000,
            "sha256": hashlib.sha256(tar(41)).hexdigest(),
            "state": f"200000/{(place / FIRST / 'test-00000-of-00001.parquet').stat().st_mtime_ns}",
        }
    }


def test_a_split_of_which_the_hub_converted_a_part_is_refused(hub, tmp_path, capsys):
    hub.add(ROWS_REPO, {"TEST/partial-test/0000.parquet": tar(30)}, CONVERTED, "refs/convert/parquet")
    assert run(tmp_path, "--tasks", PAIRS) == 3
    assert f"refs/convert/parquet of {ROWS_REPO} has no whole split in parquet" in capsys.readouterr().err
    hub.add(ROWS_REPO, {f"{one}/test/0000.parquet": tar(30) for one in "ab"}, CONVERTED, "refs/convert/parquet")
    assert run(tmp_path, "--tasks", PAIRS) == 3
    assert "has several splits (a/test, b/test); one is needed, called test" in capsys.readouterr().err


def test_rows_of_another_commit_come_only_where_they_are_to_replace(hub, tmp_path, capsys):
    assert run(tmp_path, "--tasks", PAIRS) == 0
    converted = {"TEST/test/0000.parquet": tar(50), "TEST/train/0000.parquet": tar(51)}
    hub.add(ROWS_REPO, converted, SECOND, "refs/convert/parquet")
    assert run(tmp_path, "--tasks", PAIRS) == 0
    assert run(tmp_path, "--tasks", PAIRS, "--revision", "main") == 3
    assert (
        f"has the commit {CONVERTED} and refs/convert/parquet of {ROWS_REPO} is now {SECOND}" in capsys.readouterr().err
    )
    assert run(tmp_path, "--tasks", PAIRS, "--revision", "refs/convert/parquet", "--replace") == 0
    assert files(tmp_path) == {f"hf_cache/somebody___pairs/{SECOND}/0000.parquet": tar(50)}


def test_a_dry_run_lists_and_touches_nothing(hub, tmp_path, capsys):
    assert run(tmp_path / "sets", "--dry-run") == 0
    assert not (tmp_path / "sets").exists() and hub.files_asked() == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["toy/cars", "5", "0.000", "5", "0"]
    assert lines[-1] == "0.001 GB to fetch"
    assert run(tmp_path / "sets", "--tasks", CARS) == 0
    capsys.readouterr()
    assert run(tmp_path / "sets", "--dry-run", "--tasks", CARS, DIGITS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:5] for line in lines[1:4]] == [
        ["5", "0.000", "0", "5"],
        ["4", "0.000", "4", "0"],
        ["9", "0.001", "4", "5"],
    ]


def test_a_check_finds_a_flipped_byte_a_missing_file_and_one_too_many(hub, tmp_path, capsys):
    assert run(tmp_path) == 0
    hub.asked.clear()
    capsys.readouterr()
    assert run(tmp_path, "--check") == 0
    assert capsys.readouterr().out == "3 sets of 11 files, 0.001 GB: nothing wrong\n"
    path = tmp_path / FOLDER / "test" / "1.tar"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[100_000] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    rows = tmp_path / "hf_cache" / "somebody___pairs" / CONVERTED
    (rows / "0001.parquet").unlink()
    (rows / "0002.parquet").write_bytes(b"mine")
    assert run(tmp_path, "--check") == 1
    found, expected = (hashlib.sha256(each).hexdigest() for each in (data, tar(11)))
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: sha256 {found} instead of {expected}",
        f"{rows / '0001.parquet'}: missing",
        f"{rows / '0002.parquet'}: not of the set",
        "3 sets of 11 files, 0.001 GB: 3 wrong",
    ]
    assert run(tmp_path, "--check", "--tasks", DIGITS) == 0
    assert hub.asked == []


def test_a_check_names_tasks_whose_sets_are_not_there(hub, tmp_path, capsys):
    assert run(tmp_path, "--check") == 2
    assert f"{tmp_path} has no set with a download.json" in capsys.readouterr().err
    assert run(tmp_path, "--tasks", CARS) == 0
    assert run(tmp_path, "--check", "--tasks", CARS, PAIRS) == 1
    assert f"{tmp_path / 'hf_cache' / 'somebody___pairs'}: not there (toy/pairs)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../evil.tar", "test/../../evil.tar", "/evil.txt", "test/01.tar", "test/1.tar.sh"])
def test_names_that_no_set_has_are_left_where_they_are(hub, tmp_path, name, capsys):
    hub.add(REPO, {**tar_set(1), name: b"evil"})
    assert run(tmp_path / "sets", "--tasks", CARS) == 0
    assert files(tmp_path) == {f"sets/{FOLDER}/{each}": data for each, data in of_set(tar_set(1)).items()}
    assert "(3 other files left out)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../test.parquet", "/test.parquet", "test/a b.parquet", "test/.parquet"])
def test_rows_under_a_strange_name_are_refused(hub, tmp_path, name, capsys):
    hub.add(ROWS_REPO, {name: b"evil"})
    assert run(tmp_path / "sets", "--tasks", PAIRS) == 3
    assert f"{ROWS_REPO} has a file {name!r}, a name that is not accepted" in capsys.readouterr().err
    assert files(tmp_path) == {}


def test_a_record_with_a_strange_name_is_refused(hub, tmp_path, capsys):
    assert run(tmp_path, "--tasks", CARS) == 0
    path = tmp_path / FOLDER / "download.json"
    path.write_text(path.read_text().replace('"test/1.tar": {', '"../1.tar": {'))
    for arguments in (["--check"], ["--tasks", CARS]):
        assert run(tmp_path, *arguments) in (2, 3)
        assert "download.json has ['../1.tar'], which no set has" in capsys.readouterr().err


def test_texts_are_bounded_and_compared_with_what_the_hub_lists(hub, tmp_path, capsys):
    hub.add(REPO, {**tar_set(1), "classnames.txt": bytes(1_100_000)})
    assert run(tmp_path, "--tasks", CARS) == 3
    assert "classnames.txt has 1,100,000 bytes; at most 1,048,576 are taken" in capsys.readouterr().err
    hub.add(REPO, tar_set(1))
    hub.sent["classnames.txt"] = b"one\nfour"
    assert run(tmp_path, "--tasks", CARS) == 3
    assert "classnames.txt has other bytes than the hub lists (8 bytes)" in capsys.readouterr().err
    assert files(tmp_path) == {}


def test_a_tar_with_other_bytes_than_listed_is_never_put_in_place(hub, tmp_path, capsys):
    hub.sent["test/1.tar"] = b"an error page"
    assert run(tmp_path, "--tasks", CARS) == 3
    assert f"instead of {hashlib.sha256(tar(11)).hexdigest()}" in capsys.readouterr().err
    assert set(files(tmp_path / FOLDER)) == set(stored(hub)) - {"test/1.tar", "test/nshards.txt"}


def test_a_gated_set_needs_a_token_that_no_other_host_sees(hub, tmp_path, capsys, monkeypatch):
    hub.gated.add(REPO)
    assert run(tmp_path, "--tasks", CARS) == 3
    assert (
        f"{REPO} is not open to all: ask for access on its page at the hub and set HF_TOKEN" in capsys.readouterr().err
    )
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.asked.clear()
    assert run(tmp_path, "--tasks", CARS) == 0
    assert files(tmp_path / FOLDER) == stored(hub)
    assert {(each.host, each.token) for each in hub.asked} == {("127.0.0.1", "Bearer secret"), ("localhost", None)}


def test_without_a_way_to_the_hub_there_is_one_sentence(hub, tmp_path, capsys, monkeypatch):
    assert run(tmp_path, "--tasks", CARS) == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    capsys.readouterr()
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the hub cannot be reached (") and said.count("\n") == 1
    assert run(tmp_path, "--tasks", CARS) == 0


def test_a_disk_that_is_too_small_is_told_before(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=700_000))
    assert run(tmp_path) == 2
    assert "the evaluation sets may need 0.0 GB" in capsys.readouterr().err
    assert hub.files_asked() == [] and files(tmp_path) == {}
    assert run(tmp_path, "--tasks", CARS) == 0


def test_without_huggingface_hub_it_says_how_to_get_it(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    assert run(tmp_path) == 2
    assert "install it with: pip install 'winnow-bench[hf]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "--workers is 0; it must be 1 or more"),
        (["--check", "--replace"], "--check and --replace do not go together"),
        (["--out", "s3://bucket/sets"], "--out is s3:/bucket/sets; fetch the sets to a local folder"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, capsys, arguments, said):
    assert run(tmp_path, *arguments) == 2
    assert said in capsys.readouterr().err
