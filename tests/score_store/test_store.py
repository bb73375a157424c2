"""The score store: its key, the scores that it accepts, and reading."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sepo
from sepo.errors import SepoError
from sepo.score_store import content_key, default_store_root, file_digest
from tests.support.stores import COLUMNS, IDENTITY, ROWS, SHARDS, filled, open_store, scores, tree

# --- the key ---------------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), TREES, min_size=1))
def test_the_key_ignores_order_and_depends_on_every_value(identity):
    key = content_key(identity)
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")
    assert content_key(dict(reversed(identity.items()))) == key
    name = next(iter(identity))
    assert content_key({**identity, name: [identity[name]]}) != key
    assert content_key({other: value for other, value in identity.items() if other != name}) != key


def test_the_key_is_pinned():
    # A change of this value orphans all existing stores.
    rendered = rb'{"a":{"\u00e9":"x"},"b":[1,2.5,null,true]}'
    assert content_key({"b": (1, 2.5, None, True), "a": {"é": "x"}}) == hashlib.sha256(rendered).hexdigest()[:32]


@pytest.mark.parametrize(
    ("value", "message"),
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
def test_values_that_are_not_json_raise(value, message):
    with pytest.raises(SepoError, match=message):
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


# --- results of compute -----------------------------------------------------------------------------------------


def _with(column: str, row: int, value) -> Callable[[int, int], dict]:
    def compute(start: int, stop: int) -> dict:
        result = scores(start, stop)
        if start <= row < stop:
            result[column][row - start] = value
        return result

    return compute


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.0, math.nan], "token 1 has the score nan"),
        (np.array([math.inf]), "token 0 has the score inf"),
        ([0.0, 1.0, 1e300], "token 2 has the score inf"),
        ([None], "token 0 has the score None"),
        (["1"], "not a one-dimensional sequence of float32"),
        (3.0, "not a one-dimensional sequence of float32"),
        (np.ones((2, 2)), "not a one-dimensional sequence of float32"),
    ],
)
def test_an_invalid_score_raises_with_its_row(tmp_path, value, message):
    store = open_store(tmp_path)
    with pytest.raises(SepoError, match=rf"compute\(10, 15\), column 'rejected_scores', row 12: {message}"):
        store.fill(_with("rejected_scores", 12, value))
    assert [shard.index for shard in store.missing()] == list(range(2, SHARDS))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({name: [[1.0]] * 4 for name in COLUMNS}, r"4 rows in column 'chosen_scores', expected 5 \(rows 0 to 4"),
        ({name: [[1.0]] * 6 for name in COLUMNS}, r"6 rows in column 'chosen_scores', expected 5 \(rows 0 to 4"),
        ({"chosen_scores": [[1.0]] * 5}, r"returned \['chosen_scores'\], expected the columns"),
        ({name: [[1.0]] * 5 for name in (*COLUMNS, "more")}, "'more'.*expected the columns"),
        ([[1.0]] * 5, "returned list, expected the columns"),
    ],
)
def test_wrong_rows_and_columns_raise(tmp_path, result, message):
    with pytest.raises(SepoError, match=message):
        open_store(tmp_path).fill(lambda start, stop: result)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 0}, "rows of at least 1, found 0"),
        ({"rows": True}, "rows of at least 1, found True"),
        ({"shard_rows": 0}, "shard_rows of at least 1, found 0"),
        ({"columns": []}, "distinct, non-empty column names"),
        ({"columns": ["a", "a"]}, "distinct, non-empty column names"),
    ],
)
def test_arguments_out_of_range_raise(tmp_path, changed, message):
    with pytest.raises(SepoError, match=message):
        open_store(tmp_path, **changed)
    assert not any(tmp_path.iterdir())


def test_an_error_in_compute_propagates_and_releases_the_lock(tmp_path, undisturbed):
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
@settings(max_examples=20)
def test_scores_are_read_in_the_order_in_which_they_were_written(tmp_path_factory, rows):
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
    # Another process may replace a shard; the mapped file does not change.
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


# --- independence of the machine --------------------------------------------------------------------------------------


def test_the_files_contain_no_data_of_the_machine(tmp_path, undisturbed):
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
    code = f"import sys, sepo.score_store; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(sepo.__file__).parents[1])}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout == "[]\n"
