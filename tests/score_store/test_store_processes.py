"""The score store with several processes: killed, started together, waiting for each other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sepo
from sepo.score_store import ShardRange
from sepo.score_store import store as _store
from tests.support.stores import COLUMNS, IDENTITY, ROWS, SHARD_ROWS, SHARDS, filled, open_store, scores, tree

# One program for all tests that need processes of their own. argv: action, root, log of computed shards.
PROGRAM = """
import logging, os, signal, sys, time
from pathlib import Path
import numpy as np
from sepo import score_store as package
from sepo.score_store import ScoreStore

task, root, log = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
IDENTITY, ROWS, COLUMNS, SHARD_ROWS = {constants!r}

def scores(start, stop):
    rows = [np.arange(row % 7, dtype=np.float64) / 3 - row for row in range(start, stop)]
    return {{name: [row * (1 + i) for row in rows] for i, name in enumerate(COLUMNS)}}

def noted(seconds):
    def compute(start, stop):
        with open(log, "a") as file:
            file.write(f"{{os.getpid()}} {{start}}\\n")
        time.sleep(seconds)
        return scores(start, stop)
    return compute

def run(root, compute, rows=ROWS, offset=0):
    store = ScoreStore.open(root=root, identity=IDENTITY, rows=rows, columns=COLUMNS, shard_rows=SHARD_ROWS)
    store.fill(compute, offset=offset, poll_seconds=0.02)
    return store

def tree(store):
    return {{file.name: file.read_bytes() for file in store.path.iterdir()}}

def die_at(moment):
    # The process kills itself at its n-th disk operation; a write is truncated to its half before.
    steps = iter(range(moment))
    def guarded(name, real):
        def step(*args, **kwargs):
            if next(steps, None) is None:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return step
    for name in ("write", "fsync", "replace"):
        setattr(os, name, guarded(name, getattr(os, name)))

def every_moment():
    warnings = logging.Handler(logging.WARNING)
    warnings.emit = lambda record: sys.exit(f"a kill is no damage: {{record.getMessage()}}")
    logging.getLogger("sepo.score_store").addHandler(warnings)
    rows = 2 * SHARD_ROWS + 1
    whole = tree(run(root / "whole", scores, rows))
    for moment in range(200):
        place = root / str(moment)
        child = os.fork()
        if child == 0:
            die_at(moment)
            run(place, scores, rows)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        survivor = run(place, scores, rows)
        assert tree(survivor) == whole and survivor.verify() == [], moment
        if status == 0:
            print(moment)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, status

if task == "every-moment":
    every_moment()
else:
    print("ready", flush=True)
    sys.stdin.readline()
    run(root, noted(float(task)), offset=int((sys.argv[4:] or ["0"])[0]))
"""


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen]:
    """Start the program and wait until its imports are done; a line on its stdin starts the work."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(constants=(IDENTITY, ROWS, COLUMNS, SHARD_ROWS))))
    environment = {**os.environ, "PYTHONPATH": str(Path(sepo.__file__).parents[1])}
    started = []

    def begin(*arguments, root: Path) -> subprocess.Popen:
        command = [sys.executable, str(program), arguments[0], str(root), str(tmp_path / "log"), *arguments[1:]]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        if arguments[0] != "every-moment":
            assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def hold_the_first_shard(process: subprocess.Popen, tmp_path: Path) -> None:
    go(process)
    give_up = time.monotonic() + 20
    while not (tmp_path / "log").exists():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def computed(tmp_path: Path) -> list[tuple[str, int]]:
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    return [(pid, int(row)) for pid, row in map(str.split, lines)]


def test_killed_at_random_times_then_resumed_equals_the_undisturbed_store(tmp_path, start, undisturbed):
    moments = random.Random(20240823)
    kills = 10
    for _ in range(kills):
        process = start("0.1", root=tmp_path / "root")
        go(process)
        time.sleep(moments.uniform(0.01, 0.12))
        process.kill()
        assert process.wait() == -9
    last = start("0", root=tmp_path / "root")
    go(last)
    assert last.wait(60) == 0
    store = open_store(tmp_path / "root")
    assert store.complete
    assert store.verify() == []
    assert tree(store) == undisturbed
    assert SHARDS <= len(computed(tmp_path)) <= SHARDS + kills


def test_killed_at_every_disk_operation_then_resumed_equals_the_undisturbed_store(tmp_path, start):
    process = start("every-moment", root=tmp_path / "root")
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 0
    # A manifest, three shards with a sidecar each and complete.json, of at least four disk operations each.
    assert int(output) >= 8 * 4


def test_two_processes_share_the_work(tmp_path, start, undisturbed):
    both = [start("0.05", offset, root=tmp_path / "root") for offset in ("0", str(SHARDS // 2))]
    for process in both:
        go(process)
    assert [process.wait(60) for process in both] == [0, 0]
    store = open_store(tmp_path / "root")
    assert store.complete
    assert store.verify() == []
    assert tree(store) == undisturbed
    done = computed(tmp_path)
    assert len(done) <= SHARDS + 1
    assert {pid for pid, _ in done} == {str(process.pid) for process in both}


def test_a_shard_held_elsewhere_is_waited_for_and_taken_over_when_its_holder_dies(tmp_path, start, undisturbed):
    holder = start("600", root=tmp_path / "root")
    hold_the_first_shard(holder, tmp_path)
    store = open_store(tmp_path / "root")
    order = []

    def watch(shard: ShardRange, done_rows: int) -> None:
        order.append((shard.index, done_rows))
        if len(order) == SHARDS - 1:
            holder.kill()
            holder.wait()

    store.fill(scores, on_shard=watch, poll_seconds=0.02)
    assert [index for index, _ in order] == [*range(1, SHARDS), 0]
    assert order[-1][1] == ROWS
    assert tree(store) == undisturbed


def test_a_wait_is_logged_once_and_names_the_shards(tmp_path, start, caplog):
    caplog.set_level("INFO", logger="sepo.score_store")
    hold_the_first_shard(start("0.5", root=tmp_path / "root"), tmp_path)
    store = open_store(tmp_path / "root")
    store.fill(lambda a, b: scores(a, b) if a else pytest.fail("shard 0 is computed elsewhere"), poll_seconds=0.02)
    waits = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert waits == [f"waiting for other processes to score shard-00000 in {store.path}"]


def test_a_shard_finished_between_check_and_lock_is_not_computed_again(tmp_path, monkeypatch, undisturbed):
    store = open_store(tmp_path)
    real = _store.locked

    def late(path: Path, *, wait: bool):
        if path.name == "shard-00003.lock":
            monkeypatch.setattr(_store, "locked", real)
            filled(tmp_path)
        return real(path, wait=wait)

    monkeypatch.setattr(_store, "locked", late)
    starts = []
    store.fill(lambda start, stop: starts.append(start) or scores(start, stop))
    assert starts == [0, 5, 10]
    assert tree(store) == undisturbed


def test_temporary_files_of_dead_writers_are_removed(tmp_path, undisturbed):
    store = open_store(tmp_path)
    for name in ("shard-00002.arrow", "shard-00002.json", "complete.json"):
        (store.path / f".{name}.4242-0badcafe.tmp").write_bytes(b"half a fi")
    store.fill(scores)
    assert tree(store) == undisturbed


def test_the_shard_size_of_the_manifest_takes_precedence(tmp_path, undisturbed):
    first = open_store(tmp_path)
    second = open_store(tmp_path, shard_rows=11)
    assert second.shards == first.shards
    second.fill(scores)
    assert tree(first) == undisturbed


def test_processes_with_different_shard_sizes_agree_on_a_new_store(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda size: open_store(tmp_path, shard_rows=size), range(3, 19)))
    assert len({tuple(store.shards) for store in stores}) == 1
    assert stores[0].verify() == open_store(tmp_path).verify()
