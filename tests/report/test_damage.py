"""Damaged, partial and absurd files of runs and stores: available data is read, the rest is reported."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepo.report.reading import read_subject
from sepo.report.subject import Subject
from sepo.score_store import AnswerText, RowText, ScoreStore
from tests.support.stored_runs import SELECT, SIDES, make_run, make_store, table

ROWS = table()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("lasting"), ROWS)


@pytest.fixture
def store(lasting, tmp_path):
    shutil.copytree(lasting.path, tmp_path / "scores" / lasting.key)
    return ScoreStore.at(tmp_path / "scores" / lasting.key)


@pytest.fixture
def run(store, tmp_path):
    return make_run(tmp_path / "run", store.path)


def sound(subject: Subject) -> Subject:
    """Check the invariants that a page relies on."""
    assert all(isinstance(sentence, str) and sentence for sentence in subject.missing)
    for pair in subject.pairs:
        assert isinstance(pair.row, int)
        for side in (pair.chosen, pair.rejected):
            assert len(side.tokens) == len(side.scores) == len(side.selected)
            assert (side.scores.dtype, side.selected.dtype) == (np.float32, bool)
            assert all(isinstance(token, str) for token in side.tokens)
            assert not np.isinf(side.scores).any()
    for spread in subject.spreads.values():
        assert len(spread.edges) == len(spread.counts) + 1
        assert (np.diff(spread.edges) > 0).all()
        assert spread.counts.sum() == spread.tokens > 0
        assert np.isfinite([spread.mean, spread.std, *spread.accumulated]).all()
    for entry in subject.log:
        assert isinstance(entry["step"], int)
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in entry.values())
    assert all(isinstance(value, str) for value in subject.versions.values())
    json.dumps([subject.settings, subject.recipe], allow_nan=True)
    return subject


def truncated(data):
    return data[: len(data) // 2 - 3]


def flipped(data):
    return data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 0x55]) + data[len(data) // 3 + 1 :]


DAMAGE = {
    "gone": None, "empty": lambda data: b"", "truncated": truncated, "flipped": flipped, "folder": "folder",
    "zeros": lambda data: bytes(len(data)), "not_utf8": lambda data: b"\xff\xfe" + data,
    "a list": lambda data: b"[1, 2]", "deep": lambda data: b"[" * 100_000,
}  # fmt: skip
RUN_FILES = ("sepo_settings.json", "sepo_log.jsonl", "_sepo_tokens.jsonl", "_sepo_recipe.json")
STORE_FILES = (
    "manifest.json", "complete.json", "shard-00001.arrow", "shard-00001.json", "texts.parquet", "texts.json",
)  # fmt: skip


def damage(file, how):
    change = DAMAGE[how]
    if change is None:
        file.unlink()
    elif change == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_damaged_file_of_a_run(run, name, how):
    for other in ("trainer_state.json", "trainer_log.jsonl"):
        (run / other).unlink()
    damage(run / name, how)
    subject = sound(read_subject(run))
    assert subject.missing or (name == "_sepo_tokens.jsonl" and how in ("gone", "empty", "folder", "flipped"))
    assert len(subject.pairs) == (9 if name != "sepo_settings.json" else 2) or how == "flipped"
    assert name == "sepo_log.jsonl" or len(subject.log) == 4
    assert name == "_sepo_recipe.json" or subject.recipe == {"stage": "sepo"}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", STORE_FILES)
def test_a_damaged_file_of_a_store(run, store, name, how):
    damage(store.path / name, how)
    for place in (store.path, run):
        subject = sound(read_subject(place))
        assert subject.missing or name == "complete.json"
        if name.startswith("shard"):
            assert "1 of the 3 shards" in " ".join(subject.missing)
            assert [pair.row for pair in subject.pairs] == [0, 1, 2, 3, 8]
        elif name.startswith("texts"):
            assert len(subject.pairs) == (2 if how == "gone" and not store.texts.present else 9)
            assert "texts" in " ".join(subject.missing)
            assert subject.spreads["chosen"].tokens == sum(len(row["chosen_scores"]) for row in ROWS)
        elif name == "manifest.json":
            assert subject.spreads == {} or place == run
            assert len(subject.pairs) == (0 if place == store.path else 2)


def test_nothing_is_logged_of_damage(store, caplog):
    damage(store.path / "shard-00001.arrow", "flipped")
    read_subject(store.path)
    assert caplog.messages == []


ABSURD = [
    None, True, -1, 0, 3, 1e400, float("nan"), "0.3", "", "\0\ud800", [], [None], {}, {"a": {"b": []}}, 10**400,
    "/etc/passwd", "/", {"train": 3}, {"train": "/etc"}, {**SELECT, "chosen_ratio": "0.3"}, {**SELECT, "unit": "x"},
    {**SELECT, "span_tokens": "x", "unit": "span"}, {**SELECT, "chosen_ratio": float("nan")}, {**SELECT, "more": 1},
    {**SELECT, "unit": ["step"]}, {**SELECT, "scope": "dataset", "chosen_ratio": 2},
]  # fmt: skip
KEYS = ("select", "token_scorer", "oracle", "token_rewards", "token_scores", "rejected_selects", "sepo", "stage")


@pytest.mark.parametrize("key", KEYS)
def test_absurd_settings(lasting, tmp_path, key):
    for number, value in enumerate(ABSURD):
        run = make_run(tmp_path / str(number), lasting.path, **{key: value})
        subject = sound(read_subject(run))
        assert subject.pairs, value
        assert len(subject.log) == 4


def test_absurd_logs_and_recipes(tmp_path):
    run = make_run(tmp_path / "run", None, token_scorer="policy_ref")
    good = {"event": "log", "step": 5, "time": 1.0, "loss": 0.5}
    for value in ABSURD:
        lines = [{**good, name: value} for name in ("step", "time", "loss", "event")]
        lines += [good, value, {"event": "begin", "step": 5, "time": 1.0, "total_steps": value}]
        lines += [{**good, "step": 6, "x": value}]
        (run / "sepo_log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (run / "_sepo_recipe.json").write_text(json.dumps({"recipe": value, "versions": value}))
        (run / "trainer_state.json").write_text(json.dumps({"log_history": value}))
        subject = sound(read_subject(run))
        assert {"step": 5, "loss": 0.5} in subject.log
        (run / "sepo_log.jsonl").unlink()
        history = [value, {"step": value, "loss": 1}, {"step": 2, "loss": 2}]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        assert {"step": 2, "loss": 2} in sound(read_subject(run)).log


def test_a_killed_run_is_reported(run):
    log = (run / "sepo_log.jsonl").read_text().splitlines()
    (run / "sepo_log.jsonl").write_text("\n".join(log[:3]) + '\n{"event": "log", "ste')
    subject = sound(read_subject(run))
    assert [entry["step"] for entry in subject.log] == [1, 2]
    missing = " ".join(subject.missing)
    assert "1 lines of sepo_log.jsonl cannot be read" in missing
    assert "had not finished (step 2 of 4)" in missing


def test_values_that_are_not_finite_are_counted(run):
    with (run / "sepo_log.jsonl").open("a") as file:
        for step in (5, 6):
            file.write(json.dumps({"event": "log", "step": step, "time": 1.0, "loss": float("nan"), "x": 1}) + "\n")
    subject = sound(read_subject(run))
    assert subject.log[-1] == {"step": 6, "x": 1}
    assert "not finite numbers are omitted: loss 2 times" in " ".join(subject.missing)


def test_texts_of_other_tokens_are_not_shown(store):
    """A file with a valid checksum that belongs to other scores."""
    rows = [row for _, row in store.texts.read(range(9))]
    rows[2] = RowText("other", AnswerText(("x",)), AnswerText(("y",)))
    for name in ("texts.parquet", "texts.json"):
        (store.path / name).unlink()
    store.texts.leave(lambda: [rows])
    subject = sound(read_subject(store.path))
    assert subject.missing == ["Rows 2: texts and scores are of different tokens, so the texts are not shown."]
    assert subject.pairs[2].prompt == ""
    assert subject.pairs[3].prompt == ROWS[3]["prompt"]


def test_a_store_of_nothing_but_its_manifest(store):
    for file in store.path.glob("shard-*"):
        file.unlink()
    subject = sound(read_subject(store.path))
    assert (subject.pairs, subject.spreads) == ([], {})
    assert "0 of 9 rows can be shown" in subject.missing[0]


def test_files_that_may_not_be_read(run, store):
    for file in (run / "sepo_settings.json", run / "_sepo_tokens.jsonl", store.path / "shard-00000.arrow"):
        file.unlink()
        file.symlink_to(file)  # a loop: whoever opens it, root too, gets an error
    subject = sound(read_subject(run))
    assert subject.missing
    assert len(subject.log) == 4


@given(data=st.binary(max_size=200), name=st.sampled_from(RUN_FILES), place=st.floats(0, 1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_anywhere(tmp_path_factory, data, name, place):
    folder = tmp_path_factory.mktemp("any")
    run = make_run(folder / "run", None, token_scorer="policy_ref")
    whole = (run / name).read_bytes()
    at = int(place * len(whole))
    (run / name).write_bytes(whole[:at] + data + whole[at:])
    sound(read_subject(run))


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(scores=st.lists(st.lists(FLOATS, max_size=6), min_size=1, max_size=5))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_of_any_size(tmp_path_factory, scores):
    rows = [{f"{side}_scores": row for side in SIDES} for row in scores]
    store = make_store(tmp_path_factory.mktemp("any"), rows, texts=False)
    subject = sound(read_subject(store.path))
    assert len(subject.pairs) == len(rows)
