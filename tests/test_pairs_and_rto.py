"""benchmarks/pairs_and_rto.py: its world, a small run of all of its commands, and the recorded result."""

import json
import random
import sys
from pathlib import Path

import pytest

from sepo.judges import find_judge
from tests.support.recipes import run

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "pairs_and_rto.py"
RECORDED = sorted((ROOT / "benchmarks" / "results").glob("pairs_and_rto-*.json"))
assert RECORDED


@pytest.fixture
def weekdays(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from weekdays import data, model, world

    return {"data": data, "model": model, "world": world}


def test_answers_of_a_question_worked_by_hand(weekdays):
    world = weekdays["world"]
    text = "friday plus 3 fortnight 6 fortnight days"
    assert world.right_answer(text) == "monday monday sunday sunday"
    assert world.misconceived(text) == "monday tuesday monday tuesday"
    judge = find_judge("regex", whole_response=True)
    expected = judge.read(world.pattern(text))
    assert judge.is_right("monday mon sun sunday", expected)
    for wrong in ("monday monday sunday", "monday monday sunday sunday sunday", world.misconceived(text)):
        assert not judge.is_right(wrong, expected), wrong


def test_sft_answers_have_both_spellings_and_the_misconception(weekdays):
    world, draw = weekdays["world"], random.Random(0)
    short = fortnights = misconceived = others = 0
    for _ in range(500):
        text = world.question(6, draw)
        assert world.FORTNIGHT in text
        today = world.DAYS.index(text.split()[0])
        for move, word in zip(world.moves_of(text), world.sft_answer(text, draw).split(), strict=True):
            number = (*world.DAYS, *world.SHORT).index(word)
            moved = (number - today) % 7
            if move == world.FORTNIGHT:
                assert number < 7
                assert moved in (0, 1)
                fortnights, misconceived = fortnights + 1, misconceived + moved
            else:
                assert moved == int(move)
                others, short = others + 1, short + (number >= 7)
            today = number % 7
    assert misconceived / fortnights == pytest.approx(world.MISCONCEIVED, abs=0.06)  # over 4 standard errors
    assert short / others == pytest.approx(0.5, abs=0.05)


def test_no_question_is_in_two_data_sets_and_each_word_is_one_token(weekdays, tmp_path):
    data, words = weekdays["data"], weekdays["model"].tokenizer()
    data.write_data(tmp_path, moves=3, sft=300, prompts=40, validation=10, held_out=10, seed=0)
    asked = {}
    for name, entry in json.loads((tmp_path / "dataset_info.json").read_text()).items():
        rows = json.loads((tmp_path / entry["file_name"]).read_text())
        asked[name] = {row["instruction"] for row in rows}
        for row in rows:
            ids = words(f"{row['instruction']} {row['output']}")["input_ids"]
            assert len(ids) == 6 + 3
            assert words.unk_token_id not in ids
    assert {name: len(found) for name, found in asked.items() if name != data.SFT} == {
        data.PROMPTS: 40, data.VALIDATION: 10, data.HELD_OUT: 10,
    }  # fmt: skip
    assert sum(map(len, asked.values())) == len(set().union(*asked.values()))


def checked(result):
    """Check that the summary of a result follows from its seeds, and its rates from the validation questions."""
    setting, summary = result["setting"], result["summary"]
    assert list(summary) == ["before", *setting["methods"]]
    assert [each["seed"] for each in result["seeds"]] == setting["seeds"]
    for seed in result["seeds"]:
        assert 0 < seed["pairs"]["pairs"] < seed["pairs"]["prompts"] == setting["prompts"]
    for name, modes in summary.items():
        for mode, found in modes.items():
            values = [seed["right"][name][mode] for seed in result["seeds"]]
            assert found["mean"] == pytest.approx(sum(values) / len(values), abs=2e-4)
            assert found["low"] <= found["mean"] <= found["high"]
            if "minus_dpo" in found:
                difference = found["mean"] - summary["dpo"][mode]["mean"]
                assert found["minus_dpo"]["mean"] == pytest.approx(difference, abs=2e-4)
    assert list(result["learning_rates"]) == [name for name in setting["methods"] if name != "grpo"]
    for found in result["learning_rates"].values():
        assert [each["learning_rate"] for each in found["validation"]] == setting["learning_rates"]
        best = max(each["right"] for each in found["validation"])
        assert found["chosen"] in [
            each["learning_rate"] for each in found["validation"] if each["right"] == pytest.approx(best, abs=2e-4)
        ]


@pytest.mark.host
def test_a_small_run_has_the_form_of_the_real_one_and_resumes(tmp_path):
    words = [
        sys.executable,
        SCRIPT,
        "--quick",
        "--methods",
        "dpo",
        "rto",
        "grpo",
        "--work",
        tmp_path / "work",
        "--output",
        tmp_path / "out.json",
    ]
    done = run(words, cwd=tmp_path)
    first = (tmp_path / "out.json").read_bytes()
    checked(json.loads(first))
    assert "RTO, online" in done.stdout
    assert (tmp_path / "out.png").stat().st_size > 1000
    answers = tmp_path / "work" / "seed-1" / "answers" / "sft-greedy" / "samples.jsonl"
    written = answers.stat().st_mtime_ns
    run(words, cwd=tmp_path)
    assert (tmp_path / "out.json").read_bytes() == first
    assert answers.stat().st_mtime_ns == written
    step = tmp_path / "work" / "seed-1" / "steps" / "sft.json"
    record = json.loads(step.read_text())
    step.write_text(json.dumps({**record, "request": {**record["request"], "words": ["seed=7"]}}))
    assert "is of another command or recipe; name another --work" in run(words, cwd=tmp_path, expect=1).stderr


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_the_recorded_result_is_complete_and_supports_the_documentation(path):
    result = json.loads(path.read_text())
    checked(result)
    assert path.with_suffix(".png").is_file()
    assert len(result["seeds"]) >= 3
    assert set(result["setting"]["methods"]) == {"dpo", "sepo", "treg", "rto", "grpo"}
    assert str(path.relative_to(ROOT)) in (ROOT / "docs" / "pairs_and_rto.md").read_text()
    sampled = {name: modes["sampled"] for name, modes in result["summary"].items()}
    before = sampled.pop("before")
    assert all(found["lowest"] > 2 * before["highest"] for found in sampled.values())
    assert all(min(sampled[name]["minus_dpo"]["by_seed"]) > 0 for name in ("rto", "grpo"))
    assert all(sampled[name]["minus_dpo"]["high"] < 0 for name in ("sepo", "treg"))
    assert abs(sampled["rto"]["mean"] - sampled["grpo"]["mean"]) < 0.02
