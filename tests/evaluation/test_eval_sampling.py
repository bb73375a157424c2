"""Sampled responses: independent of order, batches and number; nucleus sampling; files that are continued."""

import copy
import json
import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import Question
from sepo.evaluation.generation import Decoding, _Noise, _nucleus
from sepo.evaluation.prompts import ChatFormat, Prompt
from sepo.evaluation.report import print_summary
from sepo.evaluation.sample_file import SAMPLES, SETTINGS, open_samples
from sepo.evaluation.sample_summary import sample_summary
from sepo.evaluation.sampling import SampledResponse, sample_responses, sample_row
from sepo.intervals import share
from sepo.judges import find_judge

NEVER = 370
TEXTS = ["ab", "e", "a longer prompt", "fg", "hi there"]


def encode(messages, system, tools):
    """Encode one token for each letter, and markers for the turns."""
    return [302, *(50 + ord(letter) for letter in system + messages[0]["content"]), 303]


def prompt(text, index=0, expected=None):
    return Prompt(Question(index, (text,), {}), ({"role": "user", "content": text},), expected=expected)


PROMPTS = [prompt(text, index) for index, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def policy(exact_models):
    import contextlib

    from sepo.forward.sequences import ScoringModel

    return ScoringModel(copy.deepcopy(exact_models[0]), contextlib.nullcontext)


def chat_format(stop_ids=(NEVER,)):
    return ChatFormat(encode, lambda ids: " ".join(map(str, ids)), stop_ids, 0)


def sampled(policy, prompts=PROMPTS, samples=3, batch_tokens=1000, stop_ids=(NEVER,), **decoding):
    """Return the responses by the text of their prompt."""
    how = Decoding(**{"max_new_tokens": 8, "temperature": 1.5, **decoding})
    found = sample_responses(
        policy, prompts, chat_format(stop_ids), samples=samples, decoding=how, batch_tokens=batch_tokens
    )
    return {prompt.question.turns[0]: responses for prompt, responses in found}


def test_a_response_depends_on_prompt_seed_and_number_alone(policy):
    straight = sampled(policy)
    assert set(straight) == set(TEXTS)
    assert all(len({each.text for each in responses}) == 3 for responses in straight.values())
    for batch_tokens in (1, 30, 70):
        assert sampled(policy, batch_tokens=batch_tokens) == straight
    assert sampled(policy, PROMPTS[::-1]) == straight
    assert sampled(policy, PROMPTS[1:2]) == {"e": straight["e"]}
    more = sampled(policy, samples=5, batch_tokens=40)
    assert {text: responses[:3] for text, responses in more.items()} == straight
    other = sampled(policy, seed=1)
    assert all(other[text][number] != straight[text][number] for text in TEXTS for number in range(3))


def test_prompts_have_their_own_random_numbers(policy):
    """At this temperature all tokens are equally probable, so that equal random numbers would give equal responses."""
    texts = [each.text for responses in sampled(policy, temperature=1e9).values() for each in responses]
    assert len(set(texts)) == len(texts) == 15


def test_responses_are_finished_or_truncated(policy):
    straight = sampled(policy)
    first = int(straight["ab"][1].text.split()[2])
    found = sampled(policy, stop_ids=(first, NEVER))
    assert found["ab"][1] == SampledResponse(" ".join(straight["ab"][1].text.split()[:2]), 2, True)
    assert straight["ab"][1] == SampledResponse(straight["ab"][1].text, 8, False)


def test_greedy_responses_do_not_depend_on_the_seed(policy):
    assert sampled(policy, samples=1, temperature=0.0) == sampled(policy, samples=1, temperature=0.0, seed=5)


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=12).flatmap(
        lambda row: st.tuples(st.just(row), st.floats(0.01, 0.99))
    )
)
def test_the_nucleus_is_the_smallest_set_with_the_probability(drawn):
    row, top_p = drawn
    logits = torch.tensor([row, row[::-1]], dtype=torch.float64)
    kept = _nucleus(logits, top_p)
    for before, after in zip(logits, kept, strict=True):
        probabilities = before.softmax(-1)
        inside = after > -torch.inf
        assert torch.equal(before[inside], after[inside])
        assert probabilities[inside].sum() >= top_p - 1e-12
        assert probabilities[inside].sum() - probabilities[inside].min() < top_p + 1e-12
        assert not (~inside).any() or probabilities[~inside].max() <= probabilities[inside].min()


def test_samples_have_the_distribution_of_the_nucleus():
    logits = torch.tensor([1.0, 2.0, 0.0, -1.0])
    noise = _Noise(Decoding(temperature=0.5, top_p=0.95, seed=7), 0, [(row,) for row in range(20_000)])
    drawn = noise(torch.empty(0), logits.expand(20_000, -1)).argmax(-1)
    found = torch.bincount(drawn, minlength=4).double() / 20_000
    whole = (logits / 0.5).softmax(-1).double()
    assert whole[:2].sum() > 0.95 > whole[1]
    expected = torch.tensor([whole[0], whole[1], 0, 0]) / whole[:2].sum()
    assert (found - expected).abs().max() < 4 * 0.5 / 20_000**0.5
    assert found[2:].sum() == 0


@pytest.mark.parametrize("wrong", [0.0, 1.1, -1.0, float("nan")])
def test_an_invalid_top_p_is_an_error(wrong):
    with pytest.raises(SepoError, match=r"top_p is .*, expected a number above 0 and at most 1"):
        Decoding(top_p=wrong)


def test_a_line_has_prompt_responses_and_verdicts():
    responses = [SampledResponse("It has 8", 3, True), SampledResponse("6", 1, False)]
    row = sample_row(prompt("q", 4), responses, None)
    assert row == {
        "id": 4, "prompt": "q", "messages": [{"role": "user", "content": "q"}], "system": "", "tools": "",
        "responses": [
            {"text": "It has 8", "tokens": 3, "finished": True}, {"text": "6", "tokens": 1, "finished": False},
        ],
    }  # fmt: skip
    judged = sample_row(prompt("q", 4, expected="8"), responses, find_judge("contains"))
    assert [each["right"] for each in judged["responses"]] == [True, False]
    assert judged["expected"] == "8"
    judged = sample_row(prompt("q"), responses, find_judge("contains"))
    assert ([each["right"] for each in judged["responses"]], judged["expected"]) == ([None, None], None)


def line(index, *right, finished=True, tokens=2):
    return {
        "id": index,
        "responses": [{"text": "x", "tokens": tokens, "finished": finished, "right": value} for value in right],
    }


def test_the_summary_counts_right_and_finished_apart(capsys):
    rows = [
        line(0, True, False), line(1, True, True, finished=False), line(2, False, False), line(3, None, None, tokens=6)
    ]  # fmt: skip
    found = sample_summary(rows)
    assert (found.prompts, found.responses, found.judged) == (4, 8, 3)
    assert (found.tokens.value, found.finished.value) == (3.0, 0.75)
    assert (found.right.value, found.right_and_finished.value) == (pytest.approx(0.5), pytest.approx(0.5 / 3))
    assert found.any_right == share(2, 3)
    print_summary(found, dataset="pairs")
    printed = capsys.readouterr().out
    for piece in ("8 responses to 4 prompts of pairs; 95% intervals", "right, of 3 judged prompts", "50.0%", "75.0%",
                  "at least one right, of 3", "prompts without expected answer"):  # fmt: skip
        assert piece in printed, piece
    plain = sample_summary([{"id": 0, "responses": [{"text": "", "tokens": 0, "finished": False}]}])
    assert (plain.judged, plain.right, plain.any_right, plain.finished.value) == (0, None, None, 0.0)
    print_summary(plain, dataset="pairs")
    assert "judged" not in capsys.readouterr().out


SAME = {"settings": {"samples": 2, "top_p": 0.9, "judge": None}, "notes": {"sepo": "0.1.0"}}


def test_samples_are_continued_and_sorted(tmp_path):
    folder = tmp_path / "a" / "b"
    with open_samples(folder, **SAME) as file:
        file.add(line(5, True))
        file.add(line(2, None))
    with open(folder / SAMPLES, "a") as cut:  # a process that was killed while it wrote
        cut.write('{"id": 3, "resp')
    with open_samples(folder, **{**SAME, "notes": {"sepo": "0.2.0"}}) as file:
        assert file.rows == {5: line(5, True), 2: line(2, None)}
        file.add(line(3, False))
    with open_samples(folder, **SAME) as file:
        assert file.rows == {5: line(5, True), 2: line(2, None), 3: line(3, False)}
        file.sort()
    text = (folder / SAMPLES).read_text()
    assert [json.loads(each) for each in text.splitlines()] == [line(2, None), line(3, False), line(5, True)]
    with open_samples(folder, **SAME) as file:
        file.sort()
    assert (folder / SAMPLES).read_text() == text
    assert json.loads((folder / SETTINGS).read_text()) == SAME


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_p": 1.0}, r"has samples with top_p 0.9, and this run has 1.0; repeat that run's options"),
        ({"judge": {"name": "exact"}}, r'has samples with judge null, and this run has {"name": "exact"}'),
        ({"new": 1}, r"has samples with new null, and this run has 1"),
    ],
)
def test_samples_with_other_settings_are_not_continued(tmp_path, changed, message):
    with open_samples(tmp_path, **SAME) as file:
        file.add(line(1, True))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        pytest.raises(SepoError, match=message),
        open_samples(tmp_path, settings={**SAME["settings"], **changed}, notes={}),
    ):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_directories_that_cannot_be_continued(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / SAMPLES).write_text("x\n")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / SETTINGS).write_text("[")
    with open_samples(tmp_path / "damaged", **SAME) as file:
        file.add(line(1, True))
    with open(tmp_path / "damaged" / SAMPLES, "a") as damaged:
        damaged.write("{}\n")
    for name, message in (
        ("file", "cannot be written"),
        ("mine", "has samples.jsonl and no sampling.json, so its settings are unknown"),
        ("torn", "sampling.json cannot be read"),
        ("damaged", "line 2 of .*samples.jsonl is damaged .*; remove the line, and its prompt is sampled again"),
    ):
        with pytest.raises(SepoError, match=message), open_samples(tmp_path / name, **SAME):
            pass


def _hold(folder, opened, release):
    with open_samples(folder, **SAME):
        opened.set()
        release.wait(60)


def test_one_process_writes_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    opened, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, opened, release))
    other.start()
    try:
        assert opened.wait(60)
        with (
            pytest.raises(SepoError, match="another process writes there; wait for it"),
            open_samples(tmp_path, **SAME),
        ):
            pass
    finally:
        release.set()
        other.join()
    with open_samples(tmp_path, **SAME) as file:
        assert file.rows == {}


def test_a_full_disk_is_an_error_and_the_samples_are_continued(small_disk):
    mount, enlarge = small_disk
    folder = mount(64) / "samples"

    def fill():
        with open_samples(folder, **SAME) as file:
            for index in range(100):
                file.add({**line(index, True), "filler": "x" * 2000})

    with pytest.raises(SepoError, match=r"cannot write .*samples.jsonl: No space left"):
        fill()
    enlarge(512)
    with open_samples(folder, **SAME) as file:
        kept = len(file.rows)
        assert 0 < kept < 100
        file.add(line(kept, True))
        assert np.array_equal(sorted(file.rows), range(kept + 1))
