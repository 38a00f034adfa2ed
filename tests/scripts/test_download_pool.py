"""Downloading a pool, by the real img2dataset and huggingface_hub, from servers on this machine.

img2dataset lives in a virtual environment of its own: $WINNOW_IMG2DATASET names its command, else one is made in the
user's cache (half a minute, once).
"""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmark.pool.index import read_index
from benchmark.pool.uids import format_uids
from scripts import download_pool
from scripts.download.images import DenyList
from scripts.download.metadata import flat_names
from scripts.download.record import HubFile
from tests.conftest import uid

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "download_pool.py"
FACE = [0.5, 0.25, 0.75, 0.75]  # left, top, right, bottom, as shares of the sides
REPO = "somebody/datacomp_tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="session")
def img2dataset():
    """The path of img2dataset's command."""
    if given := os.environ.get("WINNOW_IMG2DATASET"):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "winnow"
    command = cache / "img2dataset-venv" / "bin" / "img2dataset"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "img2dataset-venv.lock"):
        if run_here("--make-venv", "--img2dataset", command) and "CI" not in os.environ:
            pytest.skip("img2dataset cannot be installed here; set WINNOW_IMG2DATASET to its command")
    return command


class Web(ThreadingHTTPServer):
    """A web of few images: what a path answers is in `pages`, and what was asked in `asked`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Page)
        self.pages: dict[str, object] = {}
        self.asked: list[str] = []
        self.is_over = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.server_port}{path}"

    def handle_error(self, *_):
        """Keep quiet about those who hang up."""

    def close(self):
        self.is_over.set()
        self.shutdown()
        self.server_close()


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        page = self.server.pages.get(path, 404)
        if callable(page):
            page = page(self)
        if isinstance(page, int):
            self.send_error(page)
        elif page is not None:
            self.answer(page)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, body, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def drip(page):
    """Promise a picture and send a byte of it every fifth of a second: no socket timeout ever passes."""
    page.send_response(200)
    page.send_header("Content-Length", "10000")
    page.end_headers()
    while not page.server.is_over.wait(0.2):
        page.wfile.write(b"x")


def hang(page):
    page.server.is_over.wait()


def opt_out(page):
    page.answer(photo(8), X_Robots_Tag="noindex")


@pytest.fixture(scope="module")
def web():
    web = Web()
    yield web
    web.close()


def photo(number, width=64, height=48):
    """Encode noise of middling contrast."""
    noise = np.random.default_rng(number).integers(60, 200, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_metadata(out, *shards):
    (out / "metadata").mkdir(parents=True)
    for number, rows in enumerate(shards):
        pd.DataFrame(rows).to_parquet(out / "metadata" / f"{number:032x}.parquet")
    return out


def row(number, url, image, boxes=()):
    return {
        "uid": uid(number),
        "url": url,
        "text": f"picture {number}",
        "original_width": 64,
        "original_height": 48,
        "face_bboxes": list(boxes),
        "sha256": hashlib.sha256(image).hexdigest(),
    }


def run_here(*arguments):
    return download_pool.main([str(each) for each in arguments])


def run_script(*arguments, **variables):
    """Run the program as a user does; the hub's client reads its variables when it is imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", **variables}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def samples(out):
    """Return (uid, key, image, json) of all samples in a pool's tars."""
    found = []
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {info.name: tar.extractfile(info).read() for info in tar}
        for name in members:
            if name.endswith(".json"):
                fields = json.loads(members[name])
                found.append((fields["uid"], name[:-5], members[name[:-5] + ".jpg"], fields))
    return found


def messages(out, shard):
    table = pq.read_table(out / "shards" / f"{shard:08d}.parquet").to_pylist()
    return {int(each["uid"], 16): each["error_message"] or each["status"] for each in table}


@pytest.fixture(scope="module")
def pool(web, img2dataset, tmp_path_factory):
    """A pool downloaded from a web in which much is wrong, in shards of 4 rows: 4 + 4 + 2 and 3."""
    out = tmp_path_factory.mktemp("download") / "pool"
    web.pages |= {f"/{number}.jpg": photo(number) for number in (0, 10, 11)}
    web.pages["/1.jpg"] = photo(1, 400, 300)
    web.pages["/12.jpg"] = photo(12, 900, 600)
    web.pages["/3.jpg"] = drip
    web.pages["/4.jpg"] = photo(444)
    web.pages["/5.jpg"] = b"no picture"
    web.pages["/7.jpg"] = hang
    web.pages["/8.jpg"] = opt_out
    web.pages["/9.jpg"] = 503
    first = [row(0, web.url("/0.jpg"), photo(0)), row(1, web.url("/1.jpg"), photo(1, 400, 300), [FACE])]
    first += [row(2, web.url("/2.jpg"), photo(2)), row(3, web.url("/3.jpg"), photo(3))]
    first += [row(4, web.url("/4.jpg"), photo(4)), row(5, web.url("/5.jpg"), b"no picture")]
    first += [row(6, "http://127.0.0.1:1/6.jpg", photo(6)), row(7, web.url("/7.jpg", "localhost"), photo(7))]
    first += [row(8, web.url("/8.jpg"), photo(8)), row(9, web.url("/9.jpg"), photo(9))]
    second = [row(10, web.url("/10.jpg"), photo(10)), row(11, web.url("/11.jpg"), photo(11))]
    second += [row(12, web.url("/12.jpg"), photo(12, 900, 600))]
    write_metadata(out, first, second)
    deny = out.parent / "deny.txt"
    deny.write_text("# they hang\nlocalhost\n")
    start = time.monotonic()
    arguments = [
        *("--repo", REPO, "--out", out, "--skip-metadata", "--shard-size", 4, "--deny", deny, "--deadline", 3),
        *("--img2dataset", img2dataset, "--threads", 4, "--processes", 2),
    ]
    assert run_here(*arguments) == 0
    return out, arguments, time.monotonic() - start


def test_images_lie_in_the_layout_of_a_pool(pool):
    out, _, _ = pool
    names = [f"{number:08d}{suffix}" for number in range(4) for suffix in (".parquet", ".tar", "_stats.json")]
    assert sorted(path.name for path in (out / "shards").iterdir() if int(path.name[:8]) < 4) == names
    first = {each[0]: each for each in samples(out)}
    assert {each: first[each][1] for each in (uid(0), uid(1), uid(10))} == {
        uid(0): "000000000000",
        uid(1): "000000000001",
        uid(10): "000000030000",
    }
    assert first[uid(0)][3]["caption"] == "picture 0"
    assert first[uid(0)][3]["sha256"] == hashlib.sha256(photo(0)).hexdigest()


def test_the_index_reads_what_was_downloaded(pool):
    out, _, _ = pool
    index = read_index(out)
    assert set(format_uids(index.uids)) >= {uid(number) for number in (0, 1, 10, 11, 12)}
    assert {(each.num_incomplete, each.without_json, each.damage) for each in index.summary.counts} == {(0, 0, 0)}
    table = pq.read_table(out / "index" / "00000003.parquet")
    assert {each.as_py() for each in table["image_sha256"]} == {
        hashlib.sha256(image).digest() for image in (photo(10), photo(11), photo(12, 900, 600))
    }


def test_each_failure_is_named(pool):
    out, _, _ = pool
    assert messages(out, 0) == {0: "success", 1: "success", 2: "HTTP Error 404: Not Found", 3: "no answer in 3 s"}
    second = messages(out, 1)
    assert second.pop(6).startswith("<urlopen error [Errno 111]")
    assert second == {4: "hash mismatch", 5: "Image decoding error", 7: "on the deny list"}
    third = messages(out, 2)
    assert third == {
        8: "Use of image disallowed by X-Robots-Tag directive",
        9: "HTTP Error 503: Service Unavailable",
    }
    stats = json.loads((out / "shards" / "00000001_stats.json").read_text())
    assert [stats[name] for name in ("count", "successes", "failed_to_download", "failed_to_resize")] == [4, 0, 3, 1]


def test_a_deadline_bounds_a_server_that_drips(pool):
    """The dripping one would take 10,000 fifths of a second."""
    assert pool[2] < 60


def test_what_is_denied_is_never_asked(pool, web):
    assert "GET /7.jpg" not in web.asked
    assert "GET /3.jpg" in web.asked


def test_longer_sides_come_down_to_512(pool):
    sizes = {each[0]: Image.open(io.BytesIO(each[2])).size for each in samples(pool[0])}
    assert sizes[uid(12)] == (512, 341)
    assert sizes[uid(0)] == (64, 48)


def test_faces_are_blurred_as_datacomp_did_and_nothing_else(pool):
    """The box of 100 x 150 grows by 15 on each side and is blurred by 15, its edge as well; scipy as the oracle."""
    image = next(each[2] for each in samples(pool[0]) if each[0] == uid(1))
    after = np.asarray(Image.open(io.BytesIO(image)), dtype=float)
    before = np.asarray(Image.open(io.BytesIO(photo(1, 400, 300))), dtype=float)
    weight = np.zeros((300, 400, 1))
    weight[60:240, 185:315] = 1
    weight = gaussian_filter(weight, (15, 15, 0), mode="mirror")
    expected = before * (1 - weight) + gaussian_filter(before, (15, 15, 0), mode="mirror") * weight
    face, far = np.s_[75:225, 200:300], np.s_[:, :100]
    assert before[face].std() > 15 and expected[face].std() < 3
    assert np.abs(after[face] - expected[face]).mean() < 1
    assert weight[far].max() < 0.001
    assert np.abs(after[far] - before[far]).mean() < 4  # JPEG, once more


def test_the_report_counts_what_arrived(pool, capsys):
    out, _, _ = pool
    retried = len(json.loads((out / "download.json").read_text())["rounds"]) > 1
    assert not retried, "the test of retries comes later in this file"
    assert run_here("--out", out, "--report") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "5 of 13 pairs (38.5 %)"
    values = json.loads((out / "download_report.json").read_text())
    assert (values["pairs"], values["present"], values["share"], values["still_to_try"]) == (13, 5, 0.384615, 0)
    assert values["bytes"] == sum(path.stat().st_size for path in (out / "shards").glob("*.tar"))
    assert {each["status"]: each["pairs"] for each in values["statuses"]}["success"] == 5
    assert sum(each["pairs"] for each in values["statuses"]) == 13
    assert {each["host"]: each["pairs"] for each in values["failing_hosts"]} == {"127.0.0.1": 7, "localhost": 1}


def test_a_second_run_asks_for_nothing(pool, web, capsys):
    before = len(web.asked)
    assert run_here(*pool[1]) == 0
    assert "every shard is there" in capsys.readouterr().out
    assert len(web.asked) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--keep-faces"], "keep_faces is false there and true now"),
        (["--shard-size", 5], "shard_size is 4 there and 5 now"),
        (["--repo", "somebody/else"], 'repo is "somebody/datacomp_tiny" there and "somebody/else" now'),
        (["--revision", "v2"], 'revision is "main" there and "v2" now'),
    ],
)
def test_other_settings_are_refused_by_name(pool, capsys, more, said):
    assert run_here(*pool[1], *more) == 2
    assert said in capsys.readouterr().err


def test_a_retry_asks_again_only_for_what_may_succeed(pool, web, capsys):
    """The one that answered 503 is back: 4 rows failed for the time being, of which one is denied."""
    out, arguments, _ = pool
    web.pages["/9.jpg"] = photo(9)
    before = len(web.asked)
    assert run_here(*arguments, "--retry") == 0
    assert sorted(web.asked[before:]) == ["GET /3.jpg", "GET /9.jpg"]
    assert capsys.readouterr().out.splitlines()[-1] == "6 of 13 pairs (46.2 %)"
    there = [each[0] for each in samples(out)]
    assert sorted(there) == [uid(number) for number in (0, 1, 9, 10, 11, 12)]
    assert next(each[1] for each in samples(out) if each[0] == uid(9)) == "000000040003"
    assert sorted(messages(out, 4)) == [3, 6, 7, 9]


def test_a_further_retry_takes_up_the_last_one_alone(pool, web, capsys):
    out, arguments, _ = pool
    web.pages["/3.jpg"] = photo(3)
    assert run_here(*arguments, "--retry", "--deadline", 20) == 0
    assert sorted(each[0] for each in samples(out)) == [uid(number) for number in (0, 1, 3, 9, 10, 11, 12)]
    assert sorted(messages(out, 5)) == [3, 6, 7]
    assert capsys.readouterr().out.splitlines()[-1] == "7 of 13 pairs (53.8 %)"
    values = json.loads((out / "download_report.json").read_text())
    assert sum(each["pairs"] for each in values["statuses"]) == 13


def test_a_retry_that_was_killed_goes_on_before_another_begins(pool, capsys):
    out, arguments, _ = pool
    before = sorted(each[0] for each in samples(out))
    (out / "shards" / "00000005_stats.json").unlink()
    assert run_here("--out", out, "--report") == 0
    assert "to be tried" in capsys.readouterr().out
    assert run_here(*arguments, "--retry") == 0
    assert "going on with what was under way" in capsys.readouterr().out
    assert sorted(each[0] for each in samples(out)) == before
    assert not (out / "shards" / "00000006.tar").exists()


def test_a_pool_of_which_nothing_arrives_is_a_pool(web, img2dataset, tmp_path, capsys):
    """The first shard is denied as a whole, the second does not exist; an empty tar stands for each."""
    rows = [
        row(number, web.url(f"/none-{number}.jpg", host), b"") for number, host in enumerate(("localhost", "[::1]"))
    ]
    out = write_metadata(tmp_path / "pool", rows)
    deny = tmp_path / "deny.txt"
    deny.write_text(web.url("/", "localhost"))
    arguments = ["--repo", REPO, "--out", out, "--skip-metadata", "--shard-size", 1, "--img2dataset", img2dataset]
    assert run_here(*arguments, "--deny", deny) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 2 pairs (0.0 %)"
    assert messages(out, 0) == {0: "on the deny list"}
    assert len(read_index(out)) == 0


def test_changed_images_and_faces_are_kept_where_that_is_asked(web, img2dataset, tmp_path):
    web.pages["/changed.jpg"] = photo(20)
    rows = [row(number, web.url(path), photo(0)) for number, path in enumerate(("/changed.jpg", "/none.jpg"))]
    for each in rows:
        del each["face_bboxes"]
    out = write_metadata(tmp_path / "pool", rows)
    arguments = ["--repo", REPO, "--out", out, "--skip-metadata", "--img2dataset", img2dataset]
    assert run_here(*arguments, "--keep-changed", "--keep-faces") == 0
    ((found, _, _, fields),) = samples(out)
    assert found == uid(0)
    assert fields["sha256"] == hashlib.sha256(photo(20)).hexdigest()
    assert "face_bboxes" not in fields
    assert messages(out, 0) == {0: "success", 1: "HTTP Error 404: Not Found"}


def slowly(page):
    time.sleep(0.05)
    return photo(int(page.path[6:-4]))


@pytest.mark.parametrize(
    ("victim", "number", "status"),
    [("program", signal.SIGKILL, -9), ("program", signal.SIGINT, 130), ("runner", signal.SIGKILL, 0)],
)
def test_killed_in_the_middle_it_goes_on_and_loses_nothing(web, img2dataset, tmp_path, victim, number, status):
    numbers = range(40)
    web.pages |= {f"/slow-{each}.jpg": slowly for each in numbers}
    rows = [row(each, web.url(f"/slow-{each}.jpg"), photo(each)) for each in numbers]
    out = write_metadata(tmp_path / "pool", rows[:25], rows[25:])
    arguments = ["--repo", REPO, "--out", out, "--skip-metadata", "--shard-size", 6, "--threads", 1]
    arguments += ["--processes", 2, "--img2dataset", img2dataset]
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # Where the tests run in the background, SIGINT is ignored, and what they start inherits that.
    with subprocess.Popen(
        command, **streams, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    ) as process:
        wait_until(lambda: any((out / "shards").glob("*_stats.json")))
        asked = len(web.asked)
        wait_until(lambda: len(web.asked) > asked)
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        runners = [int(pid) for path in children for pid in path.read_text().split()]
        os.kill(process.pid if victim == "program" else runners[0], number)
        error = process.communicate()[1]
    assert process.returncode == status, error
    assert "Traceback" not in error
    assert runners
    wait_until(lambda: not any(is_alive(pid) for pid in runners))
    done = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    whole = {name for name in done if name.endswith("_stats.json")}
    assert 0 < len(whole) < 8 or status == 0
    assert run_here(*arguments) == 0
    assert sorted(each[0] for each in samples(out)) == [uid(each) for each in numbers]
    # Shards that were complete stay; numbers and keys are those of an undisturbed run: 6 + 6 + 6 + 6 + 1, 6 + 6 + 3.
    assert all((out / "shards" / name).read_bytes() == done[name] for name in whole)
    assert {each[0]: each[1] for each in samples(out)}[uid(31)] == "000000060000"
    assert not (out / ".partial").exists()


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(claim, seconds=600):
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_img2dataset_that_dies_is_told_in_one_sentence(web, tmp_path, capsys):
    out = write_metadata(tmp_path / "pool", [row(0, web.url("/0.jpg"), photo(0))])
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("img2dataset", "python"):
        (fake / name).write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
        (fake / name).chmod(0o755)
    arguments = ["--repo", REPO, "--out", out, "--skip-metadata", "--img2dataset", fake / "img2dataset"]
    assert run_here(*arguments) == 2
    error = capsys.readouterr().err
    assert "img2dataset does not start" in error and "out of order" in error and "Traceback" not in error
    assert not list((out / "shards").glob("*")) if (out / "shards").exists() else True


# The hub


@pytest.fixture
def hub(tmp_path):
    """A hub with one dataset of two parts whose files share a name, and a further file; what it was asked is kept."""
    hub = Web()
    files = {}
    for path in ("part_0/aa.parquet", "part_1/aa.parquet", "part_1/bb.parquet"):
        file = io.BytesIO()
        pd.DataFrame([row(len(files), "http://127.0.0.1:1/", b"")]).to_parquet(file)
        files[path] = file.getvalue()
        files[path.replace(".parquet", ".npz")] = f"features of {path}".encode()
    tree = [
        {
            "type": "file",
            "path": path,
            "size": len(body),
            "oid": hashlib.sha1(body).hexdigest(),
            "lfs": {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130},
        }
        for path, body in files.items()
    ]
    for repo in (REPO, "mlfoundations/datacomp_small"):
        hub.pages[f"/api/datasets/{repo}/revision/main"] = json.dumps({"id": repo, "sha": COMMIT}).encode()
        hub.pages[f"/api/datasets/{repo}/tree/{COMMIT}"] = json.dumps(tree).encode()
        for path, body in files.items():
            hub.pages[f"/datasets/{repo}/resolve/{COMMIT}/{path}"] = lambda page, body=body: page.answer(
                body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=COMMIT
            )
    hub.files = files
    hub.variables = {"HF_ENDPOINT": hub.url("").rstrip("/"), "HF_HOME": str(tmp_path / "hf")}
    yield hub
    hub.close()


def got(hub):
    return [each.rpartition("/resolve/")[2].partition("/")[2] for each in hub.asked if "GET /datasets" in each]


def test_metadata_comes_from_the_hub_flat_and_only_what_is_missing(hub, tmp_path):
    out = tmp_path / "pool"
    arguments = ["--repo", REPO, "--out", out, "--metadata-only"]
    code, said, error = run_script(*arguments, **hub.variables)
    assert code == 0, error
    names = {
        "part_0_aa.parquet": "part_0/aa.parquet",
        "part_1_aa.parquet": "part_1/aa.parquet",
        "bb.parquet": "part_1/bb.parquet",
    }
    assert {path.name: path.read_bytes() for path in (out / "metadata").iterdir()} == {
        name: hub.files[path] for name, path in names.items()
    }
    assert said.splitlines()[-1] == "0 of 3 pairs (0.0 %)"
    assert json.loads((out / "download.json").read_text())["commit"] == COMMIT
    (out / "metadata" / "bb.parquet").unlink()
    (out / "metadata" / "part_1_aa.parquet").write_bytes(b"cut off")
    hub.asked.clear()
    code, said, error = run_script(*arguments, "--features", **hub.variables)
    assert code == 0, error
    fetched = ["part_0/aa.npz", "part_1/aa.npz", "part_1/aa.parquet", "part_1/bb.npz", "part_1/bb.parquet"]
    assert sorted(got(hub)) == fetched
    assert (out / "metadata" / "part_1_aa.npz").read_bytes() == b"features of part_1/aa.parquet"


def test_the_commands_of_the_page_run_in_their_order(hub, img2dataset, tmp_path, monkeypatch):
    """On a hub of three pairs whose links are dead."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/guides/commonpool.md").read_text()
    lines = re.findall(r"^python scripts/download_pool\.py (.*)$", page, re.M)
    assert [line.split()[-1] for line in lines] == ["--dry-run", "--make-venv", "pools/small", "--retry", "--report"]
    variables = {**hub.variables, "WINNOW_CACHE_DIR": str(img2dataset.parents[2])}
    for line in lines:
        code, said, error = run_script(*line.split(), **variables)
        assert code == 0, (line, error)
    assert said.splitlines()[-1] == "0 of 3 pairs (0.0 %)"
    assert json.loads((tmp_path / "pools" / "small" / "download_report.json").read_text())


def test_metadata_with_other_bytes_than_the_hub_says_is_refused(hub, tmp_path):
    page = f"/datasets/{REPO}/resolve/{COMMIT}/part_1/bb.parquet"
    body = bytes(reversed(hub.files["part_1/bb.parquet"]))
    hub.pages[page] = lambda page: page.answer(body, ETag='"0"', X_Repo_Commit=COMMIT)
    code, _, error = run_script("--repo", REPO, "--out", tmp_path / "pool", "--metadata-only", **hub.variables)
    assert code == 2
    assert error.splitlines()[-1].startswith("error: part_1/bb.parquet of somebody/datacomp_tiny arrived with other")
    assert not (tmp_path / "pool" / "metadata" / "bb.parquet").exists()


@pytest.mark.parametrize(
    ("repo", "variables", "said"),
    [
        ("somebody/nothing", {}, "the hub has no dataset 'somebody/nothing'"),
        (REPO, {"HF_ENDPOINT": "http://127.0.0.1:1"}, "the hub did not give somebody/datacomp_tiny"),
    ],
)
def test_a_hub_that_has_nothing_is_told_in_one_sentence(hub, tmp_path, repo, variables, said):
    hub.pages[f"/api/datasets/{repo}/revision/main"] = lambda page: not_found(page)
    variables = {**hub.variables, **variables}
    code, _, error = run_script("--repo", repo, "--out", tmp_path / "pool", "--metadata-only", **variables)
    assert code == 2
    assert said in error and "Traceback" not in error


def not_found(page):
    page.send_response(404)
    page.send_header("X-Error-Code", "RepoNotFound")
    page.send_header("Content-Length", "0")
    page.end_headers()


# What needs no server


def test_a_missing_hub_client_is_told_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    assert run_here("--scale", "small", "--out", tmp_path / "pool", "--metadata-only") == 2
    assert "install it with: pip install 'winnow-bench[hf]'" in capsys.readouterr().err


def test_names_are_those_of_the_files_where_none_is_shared():
    paths = ["part_0/aa.parquet", "part_0/aa.npz", "bb.parquet"]
    assert list(flat_names([HubFile(path, 1, None) for path in paths])) == ["aa.parquet", "aa.npz", "bb.parquet"]


def test_a_deny_list_takes_hosts_with_all_below_them_and_prefixes():
    deny = DenyList(["slow.example", "# a remark", "http://other.example/big/", ""])
    assert [
        deny.covers(url)
        for url in (
            "http://slow.example/1.jpg",
            "https://img.SLOW.example:8080/1.jpg",
            "http://notslow.example/1.jpg",
            "http://other.example/big/1.jpg",
            "http://other.example/small/1.jpg",
            "http://[broken",
            None,
        )
    ] == [True, True, False, True, False, False, False]


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        run_here("--help")
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(f"--{name}" in said for name in ("scale", "out", "retry", "deny", "deadline", "make-venv", "dry-run"))


def test_a_dry_run_says_bytes_rows_and_time(capsys):
    assert run_here("--scale", "small", "--dry-run", "--features", "--pairs-per-second", "1000") == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in said.splitlines()}
    assert lines == {
        "small:": "12,800,000 pairs, from https://huggingface.co/datasets/mlfoundations/datacomp_small",
        "metadata": "3 GB in about 26 files",
        "features": "75 GB in about 26 files",
        "images": "450 GB in 1,280 shards, were all there",
        "disk": "528 GB at most",
        "time": "3.6 hours at 1,000 pairs a second",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "smal"], "unknown scale 'smal'. Did you mean 'small'?"),
        (["--scale", "small"], "no folder for the pool; give --out"),
        (["--out", "pool"], "nothing says what pool is to hold; give --scale or --repo"),
        (["--scale", "small", "--out", "pool", "--shard-size", "0"], "--shard-size is 0; it goes from 1 to 10,000"),
        (["--scale", "small", "--out", "pool", "--deadline", "0"], "--deadline is 0.0; it must be above 0"),
        (["--out", "pool", "--report"], "pool has no download.json"),
        (["--scale", "small", "--out", "pool", "--img2dataset", "none"], "make one with: python scripts/download_p"),
        (["--scale", "small", "--out", "pool", "--deny", "none"], "none"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run_here(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "pool").exists()


def test_a_folder_with_metadata_of_unknown_origin_is_refused(tmp_path, capsys):
    out = write_metadata(tmp_path / "pool", [row(0, "http://127.0.0.1:1/", b"")])
    assert run_here("--scale", "small", "--out", out) == 2
    assert "no download.json" in capsys.readouterr().err


def test_metadata_without_hashes_is_refused_where_they_are_compared(img2dataset, tmp_path, capsys):
    rows = [row(0, "http://127.0.0.1:1/", b"")]
    del rows[0]["sha256"]
    out = write_metadata(tmp_path / "pool", rows)
    assert run_here("--scale", "small", "--out", out, "--skip-metadata", "--img2dataset", img2dataset) == 2
    assert "has no column 'sha256'; --keep-changed does without" in capsys.readouterr().err


def test_a_disk_without_room_is_told_before_the_first_image(img2dataset, tmp_path, capsys, monkeypatch):
    out = write_metadata(tmp_path / "pool", [row(0, "http://127.0.0.1:1/", b"")])
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download_pool.shutil, "disk_usage", lambda _: usage)
    assert run_here("--scale", "small", "--out", out, "--skip-metadata", "--img2dataset", img2dataset) == 2
    assert "the images may need 0.0 GB and the disk of" in capsys.readouterr().err
