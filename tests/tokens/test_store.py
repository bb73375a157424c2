"""The score store: what survives a kill, a full disk, a second process and a flipped bit, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sepo
from sepo.errors import SepoError
from sepo.tokens.store import ScoreStore, ShardRange, _store, content_key, default_store_root, file_digest

ROWS, SHARD_ROWS = 47, 5
SHARDS = math.ceil(ROWS / SHARD_ROWS)
COLUMNS = ("chosen_scores", "rejected_scores")
IDENTITY = {"rows": "sha256:1f", "oracle": {"weights": "sha256:2e", "quantization_bit": None}, "cutoff_len": 2048}

# One program for every test that needs processes of its own. argv: what to do, root, log of computed shards.
PROGRAM = """
import logging, os, signal, sys, time
from pathlib import Path
import numpy as np
from sepo.tokens import store as package
from sepo.tokens.store import ScoreStore

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
    # The process kills itself at its n-th step on the disk; a write is cut in half first.
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
    logging.getLogger("sepo.tokens.store").addHandler(warnings)
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


def scores(start: int, stop: int) -> dict[str, list[np.ndarray]]:
    rows = [np.arange(row % 7, dtype=np.float64) / 3 - row for row in range(start, stop)]
    return {name: [row * (1 + i) for row in rows] for i, name in enumerate(COLUMNS)}


def open_store(root: Path, **changed) -> ScoreStore:
    settings = {"identity": IDENTITY, "rows": ROWS, "columns": COLUMNS, "shard_rows": SHARD_ROWS, **changed}
    return ScoreStore.open(root=root, **settings)


def filled(root: Path, **changed) -> ScoreStore:
    store = open_store(root, **changed)
    store.fill(scores)
    return store


def tree(store: ScoreStore) -> dict[str, bytes]:
    return {str(file.relative_to(store.path)): file.read_bytes() for file in sorted(store.path.rglob("*"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    return tree(filled(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen]:
    """Start the program and wait until it has imported everything; a line on its stdin lets it go."""
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


# --- killed, shared, raced -------------------------------------------------------------------------------------------


def test_killed_at_random_moments_then_resumed_is_the_undisturbed_store(tmp_path, start, undisturbed):
    moments = random.Random(20240823)
    kills = 4
    for _ in range(kills):
        process = start("0.06", root=tmp_path / "root")
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


def test_killed_at_every_single_step_on_the_disk_then_resumed_is_the_undisturbed_store(tmp_path, start):
    process = start("every-moment", root=tmp_path / "root")
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 0
    # A manifest, three shards with a sidecar each and complete.json, of at least four steps each.
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
    caplog.set_level("INFO", logger="sepo.tokens.store")
    hold_the_first_shard(start("0.5", root=tmp_path / "root"), tmp_path)
    store = open_store(tmp_path / "root")
    store.fill(lambda a, b: scores(a, b) if a else pytest.fail("shard 0 is computed elsewhere"), poll_seconds=0.02)
    waits = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert waits == [f"waiting for other processes to score shard-00000 in {store.path}"]


def test_a_shard_finished_between_the_look_and_the_lock_is_not_computed_again(tmp_path, monkeypatch, undisturbed):
    store = open_store(tmp_path)
    real = _store.locked

    def late(path: Path, *, wait: bool):
        if path.name == "shard-00003.lock":
            monkeypatch.setattr(_store, "locked", real)
            filled(tmp_path)
        return real(path, wait=wait)

    monkeypatch.setattr(_store, "locked", late)
    asked = []
    store.fill(lambda start, stop: asked.append(start) or scores(start, stop))
    assert asked == [0, 5, 10]
    assert tree(store) == undisturbed


def test_leftovers_of_dead_writers_go(tmp_path, undisturbed):
    store = open_store(tmp_path)
    for name in ("shard-00002.arrow", "shard-00002.json", "complete.json"):
        (store.path / f".{name}.4242-0badcafe.tmp").write_bytes(b"half a fi")
    store.fill(scores)
    assert tree(store) == undisturbed


def test_a_second_shard_size_yields_to_the_manifest(tmp_path, undisturbed):
    first = open_store(tmp_path)
    second = open_store(tmp_path, shard_rows=11)
    assert second.shards == first.shards
    second.fill(scores)
    assert tree(first) == undisturbed


def test_shard_sizes_that_race_for_a_new_store_agree(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda size: open_store(tmp_path, shard_rows=size), range(3, 19)))
    assert len({tuple(store.shards) for store in stores}) == 1
    assert stores[0].verify() == open_store(tmp_path).verify()


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> ScoreStore:
    return filled(tmp_path_factory.mktemp("victim"))


FILES = (
    "manifest.json",
    "complete.json",
    *(f"shard-{i:05d}.{end}" for i in (0, SHARDS - 1) for end in ("arrow", "json")),
)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_any_file_is_found(victim, name, data):
    path = victim.path / name
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        problems = victim.verify()
        assert len(problems) == 1
        assert problems[0].startswith(path.stem)
        if name == "manifest.json":
            with pytest.raises(SepoError, match=r"manifest\.json.*delete .* to score again"):
                open_store(victim.path.parent)
        else:
            again = open_store(victim.path.parent)
            assert not again.complete
            assert again.verify() == problems
    finally:
        path.write_bytes(whole)
    assert victim.verify() == []


@pytest.mark.parametrize("name", ["shard-00003.arrow", "shard-00003.json"])
def test_a_damaged_shard_is_computed_again_and_only_that(tmp_path, undisturbed, caplog, name):
    path = filled(tmp_path).path / name
    path.write_bytes(path.read_bytes()[:-9] + bytes(b ^ 1 for b in path.read_bytes()[-9:]))
    store = open_store(tmp_path)
    asked = []
    assert [shard.index for shard in store.missing()] == [3]
    store.fill(lambda start, stop: asked.append((start, stop)) or scores(start, stop))
    assert asked == [(15, 20)]
    assert tree(store) == undisturbed
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "shard-00003.arrow: damaged" in warnings[0]


def test_a_shard_that_is_gone_or_truncated_is_computed_again(tmp_path, undisturbed):
    store = filled(tmp_path)
    (store.path / "shard-00001.arrow").unlink()
    (store.path / "shard-00002.arrow").write_bytes(b"")
    assert [problem.split(":")[0] for problem in store.verify()] == ["shard-00001", "shard-00002"]
    store.fill(scores)
    assert tree(store) == undisturbed


def test_a_shard_computed_again_to_other_values_gets_a_new_complete_file(tmp_path):
    store = filled(tmp_path)
    (store.path / "shard-00001.json").unlink()
    again = open_store(tmp_path)
    again.fill(lambda start, stop: {name: [[0.5]] * (stop - start) for name in COLUMNS})
    assert again.complete
    assert again.verify() == []
    assert not store.complete


def test_files_of_another_place_do_not_pass(tmp_path):
    store = filled(tmp_path)
    for ending in ("arrow", "json"):
        shutil.copy(store.path / f"shard-00001.{ending}", store.path / f"shard-00002.{ending}")
        shutil.copy(store.path / f"shard-00001.{ending}", store.path / f"shard-00077.{ending}")
    other = filled(tmp_path, identity={"oracle": "other"})
    for ending in ("arrow", "json"):
        shutil.copy(other.path / f"shard-00004.{ending}", store.path)
    problems = store.verify()
    assert [shard.index for shard in store.missing()] == [2, 4]
    assert [problem.split(":")[0] for problem in problems[:4]] == [
        "shard-00002",
        "shard-00004",
        "shard-00077.arrow",
        "shard-00077.json",
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no Arrow", "no readable Arrow stream"),
        (None, r"holds 5 rows of \['other'\], expected 5 of \['chosen_scores', 'rejected_scores'\]"),
    ],
)
def test_verify_reads_what_passes_its_checksum(tmp_path, undisturbed, data, said):
    store = filled(tmp_path)
    if data is None:
        other = open_store(tmp_path / "other", columns=["other"])
        other.fill(lambda start, stop: {"other": [[1.0]] * (stop - start)})
        data = (other.path / "shard-00001.arrow").read_bytes()
    path = store.path / "shard-00001.arrow"
    sidecar = path.with_suffix(".json")
    old = file_digest(path)
    path.write_bytes(data)
    sidecar.write_text(sidecar.read_text().replace(old, file_digest(path)))
    problems = store.verify()
    assert [problem.split(":")[0] for problem in problems] == ["shard-00001", "complete.json"]
    assert re.search(said, problems[0])
    assert [shard.index for shard in store.missing()] == [1]
    store.fill(scores)
    assert tree(store) == undisturbed
    assert store.verify() == []


def test_verify_of_an_unfinished_store_lists_what_is_not_written(tmp_path):
    store = open_store(tmp_path)
    assert len(store.verify()) == SHARDS + 1
    assert all("not written yet" in problem for problem in store.verify())
    assert not store.complete


def _manifest_with(store: ScoreStore, **changed) -> None:
    body = json.loads((store.path / "manifest.json").read_text())
    (store.path / "manifest.json").write_text(json.dumps({**body, **changed}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda store: (store.path / "manifest.json").write_bytes(b""), "no readable manifest"),
        (lambda store: (store.path / "manifest.json").write_bytes(b"[1]"), "no readable manifest"),
        (lambda store: (store.path / "manifest.json").write_bytes(b"\xff{}"), "no readable manifest"),
        (lambda store: _manifest_with(store, rows="many"), "no readable manifest"),
        (lambda store: _manifest_with(store, schema_version=9), "schema version 9 found, this sepo reads 1"),
        (lambda store: _manifest_with(store, shard_rows=6), "does not match its own checksum"),
    ],
)
def test_a_manifest_that_disagrees_is_refused(tmp_path, spoil, said):
    spoil(open_store(tmp_path))
    with pytest.raises(SepoError, match=said) as refusal:
        open_store(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "set token_scores_dir elsewhere" in str(refusal.value)


def test_other_rows_columns_or_identity_under_the_same_key_are_refused(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(SepoError, match=f"rows {ROWS} found, 48 expected under the same identity"):
        open_store(tmp_path, rows=48)
    with pytest.raises(SepoError, match=r"columns .* found, .*'other'.* expected"):
        open_store(tmp_path, columns=["other"])
    moved = tmp_path / content_key({"oracle": "other"})
    store.path.rename(moved)
    with pytest.raises(SepoError, match=f"holds the identity of key {store.key}, expected {moved.name}"):
        open_store(tmp_path, identity={"oracle": "other"})


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 100, 1500, 5000])
def test_a_full_disk_is_told_and_the_store_resumes(tmp_path, monkeypatch, undisturbed, budget):
    store = open_store(tmp_path)
    left = [budget]
    real = os.write

    def write(descriptor: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, data[: left[0]])
        left[0] -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(SepoError) as refusal:
            store.fill(scores)
    said = str(refusal.value)
    assert f"cannot write {store.path}" in said
    assert "No space left on device; free space or set token_scores_dir elsewhere; what is done is kept" in said
    assert " bytes wanted, " in said
    assert " bytes free" in said
    assert not [name for name in tree(store) if name.endswith(".tmp")]
    done = SHARDS - len(open_store(tmp_path).missing())
    assert done < SHARDS
    assert bool(done) == (budget >= 1500)
    store.fill(scores)
    assert tree(store) == undisturbed


def test_a_failing_sync_or_an_unwritable_folder_is_told(tmp_path, monkeypatch, undisturbed):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(SepoError, match="Input/output error; make it writable or set token_scores_dir"):
            store.fill(scores)
    store.fill(scores)
    assert tree(store) == undisturbed
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SepoError, match=r"cannot (read|write) .*Not a directory"):
        open_store(tmp_path / "file")


def test_a_really_full_file_system(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system; the simulated full disk above has run")
    try:
        store = open_store(place)
        with pytest.raises(SepoError, match=r"\d+ bytes wanted, \d+ bytes free\): No space left on device"):
            store.fill(lambda start, stop: {name: [np.ones(400)] * (stop - start) for name in COLUMNS})
        kept = SHARDS - len(open_store(place).missing())
        assert 0 < kept < SHARDS
        assert not list(store.path.glob(".*.tmp"))
    finally:
        subprocess.run(["umount", str(place)], check=True)


# --- the key ---------------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), TREES, min_size=1))
def test_the_key_ignores_order_and_sees_every_change(identity):
    key = content_key(identity)
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")
    assert content_key(dict(reversed(identity.items()))) == key
    name = next(iter(identity))
    assert content_key({**identity, name: [identity[name]]}) != key
    assert content_key({other: value for other, value in identity.items() if other != name}) != key


def test_the_key_is_pinned():
    # A change here orphans every store that users have.
    rendered = rb'{"a":{"\u00e9":"x"},"b":[1,2.5,null,true]}'
    assert content_key({"b": (1, 2.5, None, True), "a": {"é": "x"}}) == hashlib.sha256(rendered).hexdigest()[:32]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, r"identity\.a\[1\] is nan"),
        (-math.inf, r"identity\.a\[1\] is -inf"),
        (Path("x"), r"identity\.a\[1\] is of type Posix"),
        (b"x", r"identity\.a\[1\] is of type bytes"),
        ({1}, r"identity\.a\[1\] is of type set"),
        (np.float32(1), r"identity\.a\[1\] is of type float32"),
        ({1: "x"}, r"identity\.a\[1\] has the key 1 of type int"),
    ],
)
def test_what_is_not_json_has_no_key(value, said):
    with pytest.raises(SepoError, match=said):
        content_key({"a": [0, value]})


def test_another_identity_is_another_store(tmp_path):
    first = filled(tmp_path)
    second = open_store(tmp_path, identity={**IDENTITY, "cutoff_len": 2049})
    assert second.key != first.key
    assert len(second.missing()) == SHARDS
    assert first.verify() == []


def test_the_default_root(monkeypatch, tmp_path):
    monkeypatch.delenv("SEPO_TOKEN_SCORES_DIR", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    assert default_store_root() == Path.home() / ".cache/huggingface/sepo/token_scores"
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert default_store_root() == tmp_path / "sepo" / "token_scores"
    monkeypatch.setenv("SEPO_TOKEN_SCORES_DIR", "~/scores")
    assert default_store_root() == Path.home() / "scores"
    monkeypatch.setenv("SEPO_TOKEN_SCORES_DIR", "")
    assert default_store_root() == tmp_path / "sepo" / "token_scores"


# --- what compute may return -----------------------------------------------------------------------------------------


def _with(column: str, row: int, value) -> Callable[[int, int], dict]:
    def compute(start: int, stop: int) -> dict:
        result = scores(start, stop)
        if start <= row < stop:
            result[column][row - start] = value
        return result

    return compute


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([0.0, math.nan], "token 1 has the score nan"),
        (np.array([math.inf]), "token 0 has the score inf"),
        ([0.0, 1.0, 1e300], "token 2 has the score inf"),
        ([None], "token 0 has the score None"),
        (["1"], "no one-dimensional sequence of float32"),
        (3.0, "no one-dimensional sequence of float32"),
        (np.ones((2, 2)), "no one-dimensional sequence of float32"),
    ],
)
def test_a_score_that_is_none_is_refused_by_row(tmp_path, value, said):
    store = open_store(tmp_path)
    with pytest.raises(SepoError, match=rf"compute\(10, 15\), column 'rejected_scores', row 12: {said}"):
        store.fill(_with("rejected_scores", 12, value))
    assert [shard.index for shard in store.missing()] == list(range(2, SHARDS))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({name: [[1.0]] * 4 for name in COLUMNS}, r"4 rows in column 'chosen_scores', expected 5 \(rows 0 to 4"),
        ({name: [[1.0]] * 6 for name in COLUMNS}, r"6 rows in column 'chosen_scores', expected 5 \(rows 0 to 4"),
        ({"chosen_scores": [[1.0]] * 5}, r"returned \['chosen_scores'\], expected the columns"),
        ({name: [[1.0]] * 5 for name in (*COLUMNS, "more")}, "'more'.*expected the columns"),
        ([[1.0]] * 5, "returned list, expected the columns"),
    ],
)
def test_wrong_rows_and_columns_are_refused(tmp_path, result, said):
    with pytest.raises(SepoError, match=said):
        open_store(tmp_path).fill(lambda start, stop: result)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": 0}, "rows of at least 1, found 0"),
        ({"rows": True}, "rows of at least 1, found True"),
        ({"shard_rows": 0}, "shard_rows of at least 1, found 0"),
        ({"columns": []}, "distinct, non-empty column names"),
        ({"columns": ["a", "a"]}, "distinct, non-empty column names"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, changed, said):
    with pytest.raises(SepoError, match=said):
        open_store(tmp_path, **changed)
    assert not any(tmp_path.iterdir())


def test_an_error_in_compute_goes_through_and_frees_the_lock(tmp_path, undisturbed):
    class OutOfMemory(RuntimeError):
        pass

    def compute(start: int, stop: int) -> dict:
        raise OutOfMemory(start)

    first = open_store(tmp_path)
    with pytest.raises(OutOfMemory):
        first.fill(compute)
    second = filled(tmp_path)
    assert tree(second) == undisturbed
    with pytest.raises(SepoError, match="poll_seconds is 0"):
        first.fill(scores, poll_seconds=0)


def test_offset_wraps_round_and_progress_counts_all_rows(tmp_path):
    store = open_store(tmp_path)
    seen = []
    store.fill(scores, offset=SHARDS + 7, on_shard=lambda shard, done_rows: seen.append((shard.start, done_rows)))
    assert [row for row, _ in seen] == [35, 40, 45, 0, 5, 10, 15, 20, 25, 30]
    assert [done for _, done in seen] == [5, 10, 12, 17, 22, 27, 32, 37, 42, 47]
    store.fill(lambda start, stop: pytest.fail("a complete store computes nothing"), on_shard=pytest.fail)


# --- reading ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5), min_size=1, max_size=9)
)
@settings(max_examples=20, deadline=None)
def test_what_goes_in_comes_out_in_order(tmp_path_factory, rows):
    store = open_store(tmp_path_factory.mktemp("round"), rows=len(rows), columns=["scores"], shard_rows=4)
    store.fill(lambda start, stop: {"scores": rows[start:stop]}, offset=1)
    assert store.table()["scores"].to_pylist() == rows
    assert store.verify() == []


def test_the_table_is_mapped_not_read(tmp_path):
    long = np.arange(4096, dtype=np.float32)
    store = open_store(tmp_path, rows=256, shard_rows=64)
    store.fill(lambda start, stop: {name: [long + row for row in range(start, stop)] for name in COLUMNS})
    before = pa.total_allocated_bytes()
    table = store.table()
    assert table.nbytes > 2 * 256 * 4096 * 4
    assert pa.total_allocated_bytes() - before < 64 * 1024
    assert table["chosen_scores"][200].as_py()[:2] == [200.0, 201.0]
    assert table.schema.metadata is None
    # Another process may replace a shard; what is mapped stays what it was.
    (store.path / "shard-00003.arrow").unlink()
    assert table["rejected_scores"][255].as_py()[-1] == 4095.0 + 255


def test_an_incomplete_store_is_not_read(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.fill(lambda start, stop: scores(start, stop) if start < 40 else {"never": 1 / 0})
    with pytest.raises(SepoError, match=r"2 of 10 shards are missing \(shard-00008, shard-00009\); run fill"):
        store.table()
    with pytest.raises(SepoError, match="are missing"):
        store.files()


def test_datasets_maps_the_shards_and_joins_them_to_the_rows(tmp_path):
    store = filled(tmp_path / "root")
    before = tree(store)
    parts = [datasets.Dataset.from_file(str(path)) for path in store.files()]
    joined = datasets.concatenate_datasets(parts)
    rows = datasets.Dataset.from_dict({"row": list(range(ROWS))})
    both = datasets.concatenate_datasets([rows, joined], axis=1)
    assert both.column_names == ["row", *COLUMNS]
    assert len(joined.cache_files) == SHARDS
    expected = scores(0, ROWS)
    for row in (0, 4, 5, ROWS - 1):
        example = both[row]
        assert example["row"] == row
        for name in COLUMNS:
            np.testing.assert_array_equal(np.float32(example[name]), np.float32(expected[name][row]))
    assert tree(store) == before


# --- nothing of the machine ------------------------------------------------------------------------------------------


def test_the_files_hold_content_only(tmp_path, undisturbed):
    store = filled(tmp_path / "elsewhere", columns=COLUMNS)
    assert tree(store) == undisturbed
    assert not any(b"/" in data for name, data in undisturbed.items() if name.endswith(".json"))
    documents = {name: json.loads(data) for name, data in undisturbed.items() if name.endswith(".json")}
    assert set(documents.pop("manifest.json")) == {
        "columns", "identity", "rows", "schema_version", "sha256", "shard_rows",
    }  # fmt: skip
    assert set(documents.pop("complete.json")) == {"sha256", "shards"}
    assert all(set(document) == {"index", "rows", "sha256", "store"} for document in documents.values())
    assert documents["shard-00000.json"]["sha256"] == file_digest(store.path / "shard-00000.arrow")
    for data in undisturbed.values():
        assert str(tmp_path.parent).encode() not in data
    assert len(undisturbed) == 2 * SHARDS + 2


def test_nothing_heavy_is_imported():
    heavy = {"torch", "transformers", "datasets"}
    code = f"import sys, sepo.tokens.store; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(sepo.__file__).parents[1])}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout == "[]\n"
