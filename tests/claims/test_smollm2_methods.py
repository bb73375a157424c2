"""benchmarks/claims/smollm2_task.py: its questions, verifier, pairs, files for `sepo compare` and statistics."""

import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from sepo.intervals import Bootstrap
from sepo.judges import find_judge
from sepo.recipe.comparison import read_comparison
from tests.support.packages import on_path

CLAIMS = Path(__file__).parents[1] / "benchmarks" / "claims"


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(str(CLAIMS))
    import smollm2_task
    from smollm2 import data, estimates, invitations, judge

    yield {"task": smollm2_task, "data": data, "estimates": estimates, "invitations": invitations, "judge": judge}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("smollm2", "smollm2_task")]:
        del sys.modules[name]


@pytest.fixture
def invitations(claims):
    return claims["invitations"]


def drawn(invitations, count, *, held_out, seed=0, revised=4):
    draw = random.Random(seed)
    return [invitations.question(draw, revised=revised, held_out=held_out) for _ in range(count)]


def written(invitations, asked, seed, share):
    return invitations.answer(asked, random.Random(seed), misconceived=share)


def test_values_are_of_one_kind_and_in_no_wording(invitations):
    values = [value for pool in invitations.POOLS.values() for value in pool]
    assert len(set(values)) == len(values)
    texts = [*invitations.OPENINGS, *invitations.CLOSINGS, *invitations.REMARKS]
    texts += itertools.chain.from_iterable((*invitations.FREE.values(), *invitations.SENTENCES))
    words = set(itertools.chain.from_iterable(invitations._WORD.findall(text) for text in texts))
    assert not words & set(values)


def test_pairs_of_values_of_held_out_questions_are_in_no_other_question(invitations):
    def pairs(questions):
        return {(fact, frozenset((each.holds[fact], value)))
                for each in questions for fact, value in each.ruled_out.items()}  # fmt: skip

    trained, held_out = (pairs(drawn(invitations, 2000, held_out=part)) for part in (False, True))
    assert len(trained) > 150
    assert len(held_out) > 50
    assert not trained & held_out
    for fact in invitations.FACTS:  # both orders of every pair are possible, and each kind is in both parts
        parts = {invitations.is_held_out(fact, *pair) for pair in invitations.value_pairs(fact)}
        assert parts == {True, False}, fact


def test_prompt_states_every_fact_and_rules_out_the_revised_ones(invitations):
    for asked in drawn(invitations, 50, held_out=False):
        assert len(asked.ruled_out) == 4
        for fact, value in asked.holds.items():
            other = asked.ruled_out.get(fact)
            name = fact.capitalize()
            stated = {f"{name}: {value}."} if other is None else {
                f"{name}: {form.format(holds=value, ruled_out=other)}."
                for form in (*invitations.FIRST_HOLDS, *invitations.SECOND_HOLDS)
            }  # fmt: skip
            assert any(each in asked.text for each in stated), (fact, asked.text)


def test_spans_mark_exactly_the_wrong_values(invitations):
    for number, asked in enumerate(drawn(invitations, 100, held_out=True)):
        draw = random.Random(number)
        wording = draw.getrandbits(30)
        response = written(invitations, asked, wording, 0.5)
        found = invitations.spans(response, asked.holds)
        assert sorted(span.fact for span in found) == sorted(invitations.FACTS)  # each fact once
        for span in found:
            right, value = asked.holds[span.fact], response[span.start : span.end]
            assert value == (right if span.right else asked.ruled_out[span.fact])
        corrected = response
        for span in reversed(found):
            corrected = corrected[: span.start] + asked.holds[span.fact] + corrected[span.end :]
        outside = [response[a.end : b.start] for a, b in itertools.pairwise(found)]
        again = invitations.spans(corrected, asked.holds)
        assert [span.right for span in again] == [True] * len(found)
        assert [corrected[a.end : b.start] for a, b in itertools.pairwise(again)] == outside


def test_verifier_agrees_with_the_spans_and_with_the_judge_of_the_comparison(invitations):
    contains, counts = find_judge("contains", whole_words=True), set()
    for number, asked in enumerate(drawn(invitations, 100, held_out=False)):
        for share in (0.0, 0.3, 1.0):
            response = written(invitations, asked, number, share)
            wrong = sum(not span.right for span in invitations.spans(response, asked.holds))
            assert invitations.wrong_facts(response, asked.holds) == wrong
            assert contains(response, asked.expected) == (wrong == 0)
            assert share or not wrong
            assert share < 1 or wrong == 4
            counts.add(wrong)
    assert counts == {0, 1, 2, 3, 4}


def test_missing_and_doubly_stated_facts_are_wrong(invitations):
    contains = find_judge("contains", whole_words=True)
    (asked,) = drawn(invitations, 1, held_out=False)
    right = written(invitations, asked, 0, 0.0)
    fact, other = next(iter(asked.ruled_out.items()))
    value = asked.holds[fact]
    assert invitations.wrong_facts(right, asked.holds) == 0
    for response in (right.replace(value, "something"), f"{right} Or {other}.", right.replace(value, other)):
        assert invitations.wrong_facts(response, asked.holds) == 1
        assert not contains(response, asked.expected)
    assert invitations.wrong_facts("", asked.holds) == len(invitations.FACTS)
    assert invitations.wrong_facts(f"{right} The {value}s are.", asked.holds) == 0  # whole words only


def test_data_sets_have_no_question_in_common(claims, tmp_path):
    data = claims["data"]
    sizes = {"start": 60, "prompts": 50, "credit": 10, "validation": 20, "held_out": 30}
    assert tuple(sizes) == data.SIZES
    data.write_questions(tmp_path, revised=4, seed=0, **sizes)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    names = (data.START, data.PROMPTS, data.CREDIT, data.VALIDATION, data.HELD_OUT)
    rows = {name: json.loads((tmp_path / info[name]["file_name"]).read_text()) for name in names}
    assert [len(found) for found in rows.values()] == list(sizes.values())
    texts = [row["instruction"] for found in rows.values() for row in found]
    assert len(set(texts)) == len(texts)

    def wrong(name, side):
        found = [claims["invitations"].spans(row[side], data.values_of(row["expected"])) for row in rows[name]]
        return [sum(not span.right for span in spans) for spans in found]

    assert np.mean(wrong(data.START, "output")) == pytest.approx(4 * claims["invitations"].MISCONCEIVED, abs=0.4)
    for name in (data.PROMPTS, data.CREDIT):
        assert not any(wrong(name, "output")), name
    for name in (data.VALIDATION, data.HELD_OUT):
        assert not any(wrong(name, "chosen")), name
        assert set(wrong(name, "rejected")) == {1, 2}, name


def sample_line(asked, responses, *, chosen, rejected):
    return json.dumps({
        "messages": [{"role": "user", "content": asked.text}], "expected": asked.expected, "chosen": chosen,
        "rejected": rejected, "responses": [{"text": text, "reward": reward} for text, reward in responses],
    })  # fmt: skip


def test_pairs_have_the_wrong_tokens_of_both_responses(claims, invitations, tmp_path):
    data = claims["data"]
    data.write_questions(tmp_path, revised=4, seed=0, start=1, prompts=1, credit=1, validation=1, held_out=1)
    (asked,) = drawn(invitations, 1, held_out=False, seed=5)
    facts = list(asked.ruled_out)

    def response(*wrong):
        values = {**asked.holds, **{fact: asked.ruled_out[fact] for fact in wrong}}
        return " ".join(f"The {fact} is {values[fact]}." for fact in invitations.FACTS)

    better, worse = response(facts[0]), response(facts[1], facts[2])
    (credit,) = json.loads((tmp_path / f"{data.CREDIT}.json").read_text())
    other = json.loads(sample_line(asked, [(better, -1.0), (worse, -2.0)], chosen=0, rejected=1))
    other["messages"][0]["content"] = credit["instruction"]
    lines = [
        sample_line(asked, [(worse, -2.0), (better, -1.0)], chosen=1, rejected=0),
        sample_line(asked, [(better, -1.0), (better, -1.0)], chosen=None, rejected=None),  # a tie
        json.dumps(other),
    ]
    lacking = better.partition(".")[2]
    lines.append(sample_line(asked, [(better, -1.0), (lacking.replace(asked.ruled_out[facts[0]], "one"), -2.0)],
                             chosen=0, rejected=1))  # fmt: skip
    data.write_pairs(tmp_path, lines)
    counts = {"pairs": 1, "chosen_with_wrong_values": 1}
    assert data.pair_counts(tmp_path) == {data.PAIRS: counts, data.CREDIT_PAIRS: counts}
    (row,) = json.loads((tmp_path / f"{data.PAIRS}.json").read_text())
    assert (row["chosen"], row["rejected"], row["instruction"]) == (better, worse, asked.text)

    def values(name):
        text = row[name.partition("_")[0]]
        return sorted(text[span["start"] : span["end"]] for span in row[name])

    assert values("chosen_error_spans") == [asked.ruled_out[facts[0]]]
    assert values("rejected_error_spans") == sorted(asked.ruled_out[fact] for fact in facts[1:3])
    assert values("rejected_spans") == values("rejected_error_spans")
    assert values("chosen_spans") == sorted(asked.holds[fact] for fact in facts[1:3])


def test_summary_of_sampled_responses_and_pairs(claims, invitations, tmp_path):
    (asked,) = drawn(invitations, 1, held_out=False)
    responses = [(written(invitations, asked, 0, share), reward) for share, reward in ((0.0, 0.0), (1.0, -4.0))]
    tie = json.loads(sample_line(asked, [responses[1]] * 2, chosen=None, rejected=None))
    lines = [json.loads(sample_line(asked, responses, chosen=0, rejected=1)), tie]
    for line in lines:
        line["responses"] = [{**each, "tokens": 50, "finished": True} for each in line["responses"]]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert claims["task"].pairs_summary(tmp_path) == {
        "responses": 4, "right": 0.25, "finished": 1.0, "tokens": 50.0, "pairs": 1, "chosen_with_errors": 0.0,
        "wrong_facts_of_chosen": 0.0, "wrong_facts_of_rejected": 4.0,
    }  # fmt: skip


def test_registered_judge_counts_wrong_facts(claims, invitations, tmp_path):
    judge = claims["judge"]
    (asked,) = drawn(invitations, 1, held_out=False)
    with on_path(judge.write_registration(tmp_path)):
        found = find_judge(judge.NAME)
        assert found.reward(written(invitations, asked, 0, 1.0), asked.expected) == -4.0
        assert found.reward(written(invitations, asked, 0, 0.0), asked.expected) == 0.0


def small_setting(task, **changed):
    values = {
        "seeds": (1, 2), "tuning_seeds": 1, "learning_rates": (1e-4, 3e-4), "revised": 4, "start": 1, "prompts": 1,
        "credit": 1, "validation": 8, "held_out": 16, "max_steps": 4, "oracle_steps": 4,
    }  # fmt: skip
    return task.Setting(**{**values, **changed})


def test_runs_with_the_chosen_rates_are_those_of_the_grid(claims, tmp_path):
    task = claims["task"]
    steps = task.Steps(tmp_path, model=tmp_path, threads=1)
    variants = task.all_variants(more=True)
    assert list(variants)[:5] == list(task.all_variants(more=False)) == ["sepo", "sepo_random", "dpo", "sft",
                                                                         "sepo_known"]  # fmt: skip
    assert {name for pair in task.DIFFERENCES for name in pair} == set(variants)
    recipe = task.comparison(steps, small_setting(task), variants)
    tuning = read_comparison({**recipe, "seeds": [1]})
    assert len(tuning.runs()) == 2 * len(variants)
    rates = {name: 3e-4 if name == "dpo" else 1e-4 for name in variants}
    final = read_comparison({**task.narrowed(recipe, rates), "seeds": [1, 2]})
    assert len(final.runs()) == 2 * len(variants)
    first = {run.name: run.recipe for run in tuning.runs()}
    again = {run.name: run.recipe for run in final.runs() if run.seed == 1}
    assert {run: first[run] for run in again} == again  # found finished, not trained again
    assert [task.run_name(name, rates) for name in variants] == [variant.name for variant in final.variants]
    assert final.baseline == "dpo-learning_rate=0.0003"
    assert not final.choose


def test_rates_and_answers_are_read_from_the_files_of_the_comparison(claims, tmp_path):
    task = claims["task"]
    tuned = {"variants": {"dpo": {"keys": {"learning_rate": 3e-4}, "failed": {}}}}
    assert task.chosen_rates(tuned) == {"dpo": 3e-4}
    with pytest.raises(SystemExit, match=r"no run of sft succeeded: .*broken"):
        task.chosen_rates({"variants": {"sft": {"keys": None, "failed": {"sft-1": "broken"}}}})
    for seed, right in ((1, [1.0, 0.0, 1.0]), (2, [0.0, 0.0, 1.0])):
        folder = tmp_path / "evaluations" / "heldout" / f"dpo-{seed}"
        folder.mkdir(parents=True)
        (folder / "rows.json").write_text(json.dumps({"rows": {"right": right}}))
    assert task.right_answers(tmp_path, "dpo", [2, 1]).tolist() == [[0, 0, 1], [1, 0, 1]]


def test_interval_over_seeds_and_questions_against_a_loop(claims):
    crossed = claims["estimates"].crossed
    draw = np.random.default_rng(0)
    table = (draw.random((5, 40)) < 0.4).astype(float)
    means = []
    for _ in range(4000):
        seeds, questions = draw.integers(5, size=5), draw.integers(40, size=40)
        means.append(table[seeds][:, questions].mean())
    found = crossed(table)
    assert found.value == table.mean()
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.015)


def test_interval_has_the_spread_of_seeds_and_of_questions(claims):
    crossed = claims["estimates"].crossed
    constant = crossed(np.full((3, 10), 0.5))
    assert (constant.low, constant.high) == pytest.approx((0.5, 0.5))
    of_questions = np.repeat([np.arange(20) % 2.0], 4, axis=0)  # all seeds alike: as over rows alone
    alone, found = Bootstrap(20, samples=10_000, seed=1).mean(of_questions[0]), crossed(of_questions)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.051)
    of_seeds = crossed(np.repeat([[0.0], [1.0], [0.0], [1.0]], 20, axis=1))  # all questions alike
    assert (of_seeds.low, of_seeds.high) == pytest.approx((0.0, 1.0))


def test_differences_are_paired(claims):
    task = claims["task"]
    draw = np.random.default_rng(0)
    base = (draw.random((3, 50)) < 0.5).astype(float)
    better = base.copy()
    better[:, :5] = 1.0
    found = task.summarized({"sepo": better, "dpo": base})
    assert list(found["differences"]) == ["sepo - dpo"]
    difference = found["differences"]["sepo - dpo"]
    assert difference["value"] == pytest.approx((better - base).mean(), abs=1e-4)
    assert difference["by_seed"] == pytest.approx((better - base).mean(1), abs=1e-4)
    share = found["right"]["sepo"]
    assert difference["low"] >= 0
    assert difference["high"] - difference["low"] < share["high"] - share["low"]


def test_steps_run_once_and_refuse_other_settings(claims, tmp_path):
    task = claims["task"]
    steps = task.Steps(tmp_path, model=tmp_path, threads=1)
    with pytest.raises(SystemExit, match=r"sepo credit ended with status 2.*\n(.*\n)*.*nothing.json"):
        steps.run("credit", "credit", "nothing.json", "--check")
    rows = [{"prompt": "?", "chosen": "a b", "rejected": "a c", "rejected_error_spans": [{"start": 2, "end": 3}]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ("credit", str(tmp_path / "rows.json"), "--check")
    steps.run("check", *words)
    (tmp_path / "rows.json").unlink()
    assert steps.run("check", *words) >= 0  # found finished: the file is not read again
    with pytest.raises(SystemExit, match="of other settings"):
        steps.run("check", *words, depends={"seed": 2})
