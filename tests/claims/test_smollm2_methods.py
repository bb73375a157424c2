"""benchmarks/claims/smollm2_methods.py: its questions, verifier, pairs, files for `sepo compare` and results."""

import itertools
import json
import random

import numpy as np
import pytest
from claims import smollm2_methods as study
from claims.invitations import data, judge
from claims.invitations import questions as invitations

from sepo.judges import find_judge
from sepo.recipe.comparison import read_comparison
from tests.support.packages import on_path

REVISED = 3
SMALL = data.Sizes(start=60, prompts=50, credit=10, validation=20, held_out=30)


def drawn(count, *, held_out, seed=0):
    draw = random.Random(seed)
    return [invitations.question(draw, revised=REVISED, held_out=held_out) for _ in range(count)]


def written(asked, seed, share):
    return invitations.answer(asked, random.Random(seed), misconceived=share)


def test_values_are_of_one_kind_and_in_no_wording():
    values = [value for pool in invitations.POOLS.values() for value in pool]
    assert len(set(values)) == len(values)
    texts = [*invitations.OPENINGS, *invitations.CLOSINGS, *invitations.REMARKS]
    texts += itertools.chain.from_iterable((*invitations.FREE.values(), *invitations.SENTENCES))
    words = set(itertools.chain.from_iterable(invitations._WORD.findall(text) for text in texts))
    assert not words & set(values)


def test_pairs_of_values_of_held_out_questions_are_in_no_other_question():
    def pairs(questions):
        return {(fact, frozenset((each.holds[fact], value)))
                for each in questions for fact, value in each.ruled_out.items()}  # fmt: skip

    trained, held_out = (pairs(drawn(2000, held_out=part)) for part in (False, True))
    assert len(trained) > 120
    assert len(held_out) > 40
    assert not trained & held_out
    for fact in invitations.FACTS:  # both orders of every pair are possible, and each kind is in both parts
        parts = {invitations.is_held_out(fact, *pair) for pair in invitations.value_pairs(fact)}
        assert parts == {True, False}, fact


def test_prompt_states_every_fact_and_rules_out_the_revised_ones():
    for asked in drawn(50, held_out=False):
        assert len(asked.ruled_out) == REVISED
        for fact, value in asked.holds.items():
            other = asked.ruled_out.get(fact)
            name = fact.capitalize()
            stated = {f"{name}: {value}."} if other is None else {
                f"{name}: {form.format(holds=value, ruled_out=other)}."
                for form in invitations.FORMS
            }  # fmt: skip
            assert any(each in asked.text for each in stated), (fact, asked.text)


def test_spans_mark_exactly_the_wrong_values():
    for number, asked in enumerate(drawn(100, held_out=True)):
        draw = random.Random(number)
        wording = draw.getrandbits(30)
        response = written(asked, wording, 0.5)
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


def test_verifier_agrees_with_the_spans_and_with_the_judge_of_the_comparison():
    contains, counts = find_judge("contains", whole_words=True), set()
    for number, asked in enumerate(drawn(100, held_out=False)):
        for share in (0.0, 0.3, 1.0):
            response = written(asked, number, share)
            wrong = sum(not span.right for span in invitations.spans(response, asked.holds))
            assert invitations.wrong_facts(response, asked.holds) == wrong
            assert contains(response, asked.expected) == (wrong == 0)
            assert share or not wrong
            assert share < 1 or wrong == REVISED
            counts.add(wrong)
    assert counts == set(range(REVISED + 1))


def test_missing_and_doubly_stated_facts_are_wrong():
    contains = find_judge("contains", whole_words=True)
    (asked,) = drawn(1, held_out=False)
    right = written(asked, 0, 0.0)
    fact, other = next(iter(asked.ruled_out.items()))
    value = asked.holds[fact]
    assert invitations.wrong_facts(right, asked.holds) == 0
    for response in (right.replace(value, "something"), f"{right} Or {other}.", right.replace(value, other)):
        assert invitations.wrong_facts(response, asked.holds) == 1
        assert not contains(response, asked.expected)
    assert invitations.wrong_facts("", asked.holds) == len(invitations.FACTS)
    assert invitations.wrong_facts(f"{right} The {value}s are.", asked.holds) == 0  # whole words only


def test_data_sets_have_no_question_in_common(tmp_path):
    data.write_questions(tmp_path, revised=REVISED, sizes=SMALL, seeds=(3, 7))
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    held_out = [data.held_out_name(seed) for seed in (3, 7)]
    names = (data.START, data.PROMPTS, data.CREDIT, data.VALIDATION, *held_out)
    rows = {name: json.loads((tmp_path / info[name]["file_name"]).read_text()) for name in names}
    assert [len(found) for found in rows.values()] == [60, 50, 10, 20, 30, 30]
    texts = [row["instruction"] for found in rows.values() for row in found]
    assert len(set(texts)) == len(texts)

    def wrong(name, side):
        found = [invitations.spans(row[side], data.values_of(row["expected"])) for row in rows[name]]
        return [sum(not span.right for span in spans) for spans in found]

    assert np.mean(wrong(data.START, "output")) == pytest.approx(REVISED * invitations.MISCONCEIVED, abs=0.4)
    for name in (data.PROMPTS, data.CREDIT):
        assert not any(wrong(name, "output")), name
    for name in (data.VALIDATION, *held_out):
        assert not any(wrong(name, "chosen")), name
        assert set(wrong(name, "rejected")) == {1, 2}, name


def test_further_seeds_leave_the_other_data_sets_as_they_are(tmp_path):
    for name, seeds in (("one", (3,)), ("two", (3, 7))):
        data.write_questions(tmp_path / name, revised=REVISED, sizes=SMALL, seeds=seeds)
    for path in (tmp_path / "one").glob("invitations_*.json"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def sample_line(asked, responses, *, chosen, rejected):
    return json.dumps({
        "messages": [{"role": "user", "content": asked.text}], "expected": asked.expected, "chosen": chosen,
        "rejected": rejected, "responses": [{"text": text, "reward": reward} for text, reward in responses],
    })  # fmt: skip


def test_pairs_have_the_wrong_tokens_of_both_responses(tmp_path):
    data.write_questions(tmp_path, revised=REVISED, sizes=data.Sizes(1, 1, 1, 1, 1), seeds=(1,))
    (asked,) = drawn(1, held_out=False, seed=5)
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


def test_summary_of_sampled_responses_and_pairs(tmp_path):
    (asked,) = drawn(1, held_out=False)
    responses = [(written(asked, 0, share), reward) for share, reward in ((0.0, 0.0), (1.0, -3.0))]
    tie = json.loads(sample_line(asked, [responses[1]] * 2, chosen=None, rejected=None))
    lines = [json.loads(sample_line(asked, responses, chosen=0, rejected=1)), tie]
    for line in lines:
        line["responses"] = [{**each, "tokens": 50, "finished": True} for each in line["responses"]]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert study.samples_summary(tmp_path / "samples.jsonl") == {
        "responses": 4, "right": 0.25, "facts": pytest.approx(1 - 9 / 24), "finished": 1.0, "tokens": 50.0, "pairs": 1,
        "chosen_with_errors": 0.0, "wrong_facts_of_chosen": 0.0, "wrong_facts_of_rejected": 3.0,
    }  # fmt: skip


def test_registered_judge_counts_wrong_facts(tmp_path):
    (asked,) = drawn(1, held_out=False)
    with on_path(judge.write_registration(tmp_path)):
        found = find_judge(judge.NAME)
        assert found.reward(written(asked, 0, 1.0), asked.expected) == -3.0
        assert found.reward(written(asked, 0, 0.0), asked.expected) == 0.0


@pytest.fixture
def steps(tmp_path):
    return study.Steps(tmp_path, model=tmp_path, threads=1)


def answered(folder, run, answers):
    """Write the answers of a run of a comparison, to questions with a share of their revised facts to get wrong."""
    lines = [{"answer": written(asked, 0, share), "expected": asked.expected} for asked, share in answers]
    path = folder / "evaluations" / "heldout" / run / "generations.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_variant_is_tuned_once_and_the_rate_with_most_right_facts_is_read(steps, monkeypatch):
    setting, questions, files = study.Setting(rates=(1e-4, 1e-3)), drawn(4, held_out=True), []

    def compare(_, name, recipe):
        files.append(recipe)
        for run in read_comparison(recipe).runs():
            good = run.name.startswith("dpo-") == ("0.0001" in run.name)
            answered(steps.work / name, run.name, [(asked, 0.0 if good else 1.0) for asked in questions])

    monkeypatch.setattr(study, "compare", compare)
    found = study.tune(steps, setting, map)
    assert sorted(found) == sorted(study.variants()) == sorted(name for each in files for name in each["variants"])
    (trained,) = [each for each in files if "oracle" in each]
    assert trained["output_dir"] == str(steps.oracle.parent)
    assert {each["eval_dataset"] for each in files} == {data.VALIDATION}
    for name, rates in found.items():
        assert rates == pytest.approx({1e-4: 0.5, 1e-3: 1.0} if name != "dpo" else {1e-4: 1.0, 1e-3: 0.5})


def test_files_of_the_seeds_differ_in_seed_and_questions_alone(steps):
    chosen = {name: {**keys, "learning_rate": 1e-3} for name, keys in study.variants().items()}
    one, two = (
        study.comparison(steps, study.Setting(), f"seed-{seed}", chosen, seed=seed,
                         questions=data.held_out_name(seed), count=96)
        for seed in (1, 2)
    )  # fmt: skip
    assert {name for name in one if one[name] != two[name]} == {"output_dir", "seeds", "eval_dataset"}
    read = read_comparison(one)
    assert [variant.name for variant in read.variants] == list(chosen)
    assert set(study.BASELINES) <= set(chosen)
    assert one["baseline"] in chosen
    oracle = str(steps.work / "tuning-1" / "oracle")
    assert (one["oracle_base_model"], one["oracle_model_adapters"]) == (str(steps.start), oracle)


def test_rows_have_differences_paired_by_seed():
    found = {
        "sepo_ftx": [{"right": 0.75, "facts": 0.9}, {"right": 0.5, "facts": 0.8}],
        "dpo_ftx": [{"right": 0.5, "facts": 0.8}, {"right": 0.25, "facts": 0.7}],
    }
    rates = dict.fromkeys(found, 1e-3)
    result = study.rows(found, {name: {1e-3: 0.9, 3e-3: 0.8} for name in found}, rates)
    row = result["sepo_ftx"]
    assert (row["rate"], row["comparisons"], row["by_seed"]) == (1e-3, 2, [0.75, 0.5])
    assert row["validation"] == {"0.001": 0.9, "0.003": 0.8}
    assert row["minus"] == {
        "dpo_ftx": {
            "right": {"mean": 0.25, "low": 0.25, "high": 0.25}, "facts": {"mean": 0.1, "low": 0.1, "high": 0.1},
        },
    }  # fmt: skip
    assert row["right"]["low"] < 0.25 < row["right"]["mean"] == 0.625
    assert set(result["dpo_ftx"]["minus"]) == {"sepo_ftx"}


def test_steps_run_once_and_refuse_other_settings(steps, tmp_path):
    with pytest.raises(SystemExit, match=r"credit ended with status 2.*\n(.*\n)*.*nothing.json"):
        steps.run("credit", "credit", "nothing.json", "--check")
    rows = [{"prompt": "?", "chosen": "a b", "rejected": "a c", "rejected_error_spans": [{"start": 2, "end": 3}]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ("credit", str(tmp_path / "rows.json"), "--check")
    steps.run("check", *words)
    (tmp_path / "rows.json").unlink()
    steps.run("check", *words)  # found finished: the file is not read again
    assert steps.seconds["check"] > 0
    with pytest.raises(SystemExit, match="of other settings"):
        steps.run("check", *words, depends={"seed": 2})
