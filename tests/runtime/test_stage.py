"""Stages on disk: atomic writes, records that fit or do not, locks."""

import json
import multiprocessing
import pickle
import threading
import time

import pytest

from benchmark.runtime import files
from benchmark.runtime.costs import cost
from benchmark.runtime.files import atomic_path, remove_temporary
from benchmark.runtime.locks import locked
from benchmark.runtime.records import Record, describe_differences, finished, read_record, write_record
from tests.conftest import user_error


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_what_a_kill_left_is_removed(tmp_path):
    (tmp_path / "a.npy.tmp").write_text("half")
    (tmp_path / ".tmp0sxEBm").write_text("safetensors' own, half")
    (tmp_path / "a.npy").write_text("whole")
    remove_temporary(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """As when Ray takes a worker for dead that is not, and has another do its work."""
    path = tmp_path / "file"
    monkeypatch.setattr(files, "_writer", "")
    files.use_own_temporary_names()
    with atomic_path(path) as mine, monkeypatch.context() as elsewhere:
        mine.write_text("half of it")
        elsewhere.setattr(files, "_writer", "")
        files.use_own_temporary_names()
        with atomic_path(path) as theirs:
            theirs.write_text("whole")
        assert path.read_text() == "whole" and mine.read_text() == "half of it"
        mine.write_text("whole")
        assert mine.name.endswith(".tmp")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text() == "whole"


def test_a_record_that_fits_is_returned_and_one_that_does_not_is_refused(tmp_path):
    path = tmp_path / "out.json"
    inputs = {"pool": "ab", "filters": [{"name": "x", "cut": 0.3}], "sizes": (1, 2)}
    assert finished(path, "filter", 1, inputs) is None
    write_record(path, Record("filter", 1, inputs, {"size": 3}))
    assert finished(path, "filter", 1, inputs).result == {"size": 3}
    with user_error("record-differs", match='pool.*"ab".*"cd"'):
        finished(path, "filter", 1, {**inputs, "pool": "cd"})
    with user_error("record-differs", match="version.*1.*2"):
        finished(path, "filter", 2, inputs)
    with user_error("record-differs", match="within"):
        finished(path, "filter", 1, {**inputs, "within": None})


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "out.json"
    path.write_text('{"stage": ')
    with user_error("json-damaged", match=r"out\.json"):
        read_record(path)
    for text in ("{}", "[]", '{"stage": "x", "version": 1, "made_from": [], "result": {}}'):
        path.write_text(text)
        with user_error("record-damaged", match=r"out\.json"):
            read_record(path)


def test_a_record_that_lacks_what_is_needed_of_it_is_named_with_that(tmp_path):
    path = tmp_path / "out.json"
    write_record(path, Record("filter", 1, {"recipe": {"scale": "pico"}}, {}))
    record = read_record(path)
    assert record == Record("filter", 1, {"recipe": {"scale": "pico"}}, {})
    assert pickle.loads(pickle.dumps(record)) == record
    with user_error("record-damaged", match=r"out\.json.*'pool'"):
        record.inputs["pool"]
    with user_error("record-damaged", match=r"out\.json.*'version'"):
        record.inputs["recipe"]["version"]


def _hold(folder, started, seconds):
    with locked(folder):
        started.set()
        time.sleep(seconds)


def test_a_second_process_waits_for_the_lock(tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, started, 0.3))
    process.start()
    assert started.wait(600)
    with locked(tmp_path):
        assert process.exitcode is not None or not process.is_alive() or process.join(0.2) is None
    process.join(600)
    assert "another process is at work here" in capsys.readouterr().out


def test_threads_of_one_process_take_turns_without_a_word(tmp_path, capsys):
    inside, order = threading.Event(), []

    def work(name):
        with locked(tmp_path):
            order.append(f"{name} begins")
            inside.set()
            time.sleep(0.2)
            order.append(f"{name} ends")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    threads[0].start()
    assert inside.wait(600)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert order[:2] == ["a begins", "a ends"] and len(order) == 6
    assert [line[0] for line in order[::2]] == [line[0] for line in order[1::2]]
    assert capsys.readouterr().out == ""


def test_costs_are_appended(tmp_path):
    for number in (1, 2):
        with cost(tmp_path, "filter", workers=number) as more:
            more["rows"] = 10
    lines = [json.loads(line) for line in (tmp_path / "costs.jsonl").read_text().splitlines()]
    assert [(line["workers"], line["rows"]) for line in lines] == [(1, 10), (2, 10)]
    assert all(line["seconds"] >= 0 for line in lines)


def test_changed_code_of_a_filter_is_told_in_words():
    told = describe_differences({"filters": [{"identity": "a"}]}, {"filters": [{"identity": "b"}]})
    assert told == 'filters.0.identity (the code of it and of its helpers) is "b" there and "a" now'
