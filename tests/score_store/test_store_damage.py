"""The score store with disk failures: flipped bits, missing and foreign files, no space left."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.score_store import ScoreStore, content_key, file_digest
from tests.support.stores import COLUMNS, ROWS, SHARDS, filled, open_store, scores, tree


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> ScoreStore:
    return filled(tmp_path_factory.mktemp("victim"))


FILES = (
    "manifest.json",
    "complete.json",
    *(f"shard-{i:05d}.{end}" for i in (0, SHARDS - 1) for end in ("arrow", "json")),
)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25)
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
def test_only_a_damaged_shard_is_computed_again(tmp_path, undisturbed, caplog, name):
    path = filled(tmp_path).path / name
    path.write_bytes(path.read_bytes()[:-9] + bytes(b ^ 1 for b in path.read_bytes()[-9:]))
    store = open_store(tmp_path)
    computed = []
    assert [shard.index for shard in store.missing()] == [3]
    store.fill(lambda start, stop: computed.append((start, stop)) or scores(start, stop))
    assert computed == [(15, 20)]
    assert tree(store) == undisturbed
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "shard-00003.arrow: damaged" in warnings[0]


def test_a_missing_or_truncated_shard_is_computed_again(tmp_path, undisturbed):
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


def test_files_of_another_store_fail_verification(tmp_path):
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
    ("data", "message"),
    [
        (b"no Arrow", "not a readable Arrow stream"),
        (None, r"holds 5 rows of \['other'\], expected 5 of \['chosen_scores', 'rejected_scores'\]"),
    ],
)
def test_verify_reads_files_with_a_valid_checksum(tmp_path, undisturbed, data, message):
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
    assert re.search(message, problems[0])
    assert [shard.index for shard in store.missing()] == [1]
    store.fill(scores)
    assert tree(store) == undisturbed
    assert store.verify() == []


def test_verify_of_an_unfinished_store_lists_missing_shards(tmp_path):
    store = open_store(tmp_path)
    assert len(store.verify()) == SHARDS + 1
    assert all("not written yet" in problem for problem in store.verify())
    assert not store.complete


def _manifest_with(store: ScoreStore, **changed) -> None:
    body = json.loads((store.path / "manifest.json").read_text())
    (store.path / "manifest.json").write_text(json.dumps({**body, **changed}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda store: (store.path / "manifest.json").write_bytes(b""), "no readable manifest"),
        (lambda store: (store.path / "manifest.json").write_bytes(b"[1]"), "no readable manifest"),
        (lambda store: (store.path / "manifest.json").write_bytes(b"\xff{}"), "no readable manifest"),
        (lambda store: _manifest_with(store, rows="many"), "no readable manifest"),
        (lambda store: _manifest_with(store, schema_version=9), "schema version 9 found, expected 1"),
        (lambda store: _manifest_with(store, shard_rows=6), "does not match its own checksum"),
    ],
)
def test_a_contradictory_manifest_raises(tmp_path, spoil, message):
    spoil(open_store(tmp_path))
    with pytest.raises(SepoError, match=message) as refusal:
        open_store(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "set another token_scores_dir" in str(refusal.value)


def test_other_rows_columns_or_identity_under_the_same_key_raise(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(SepoError, match=f"rows {ROWS} found, 48 expected under the same identity"):
        open_store(tmp_path, rows=48)
    with pytest.raises(SepoError, match=r"columns .* found, .*'other'.* expected"):
        open_store(tmp_path, columns=["other"])
    moved = tmp_path / content_key({"oracle": "other"})
    store.path.rename(moved)
    with pytest.raises(SepoError, match=f"holds the identity of key {store.key}, expected {moved.name}"):
        open_store(tmp_path, identity={"oracle": "other"})


@pytest.mark.parametrize("budget", [0, 100, 1500, 5000])
def test_a_full_disk_raises_and_the_store_resumes(tmp_path, monkeypatch, undisturbed, budget):
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
    message = str(refusal.value)
    assert f"cannot write {store.path}" in message
    assert "No space left on device; free space or set another token_scores_dir; finished shards are kept" in message
    assert " bytes needed, " in message
    assert " bytes free" in message
    assert not [name for name in tree(store) if name.endswith(".tmp")]
    done = SHARDS - len(open_store(tmp_path).missing())
    assert done < SHARDS
    assert bool(done) == (budget >= 1500)
    store.fill(scores)
    assert tree(store) == undisturbed


def test_a_failing_sync_or_an_unwritable_directory_raises(tmp_path, monkeypatch, undisturbed):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(SepoError, match="Input/output error; make it writable or set another token_scores_dir"):
            store.fill(scores)
    store.fill(scores)
    assert tree(store) == undisturbed
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SepoError, match=r"cannot (read|write) .*Not a directory"):
        open_store(tmp_path / "file")


def test_a_full_file_system(small_disk):
    mounted, enlarge = small_disk
    place = mounted(64)
    store = open_store(place)
    with pytest.raises(SepoError, match=r"\d+ bytes needed, \d+ bytes free\): No space left on device"):
        store.fill(lambda start, stop: {name: [np.ones(400)] * (stop - start) for name in COLUMNS})
    kept = SHARDS - len(open_store(place).missing())
    assert 0 < kept < SHARDS
    assert not list(store.path.glob(".*.tmp"))
    assert enlarge(4096)
    computed = []
    store.fill(lambda start, stop: computed.append(start) or scores(start, stop))
    assert len(computed) == SHARDS - kept
    assert store.complete
    assert store.verify() == []
