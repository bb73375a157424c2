"""Greedy answers against a loop of argmax over full logits; samples against their distribution; conversations."""

import copy

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import Question
from sepo.evaluation.divergence import answer_sums
from sepo.evaluation.generation import Decoding, Generated, _Noise, generate_answers
from sepo.evaluation.prompts import ChatFormat, Prompt, PromptSet, check_room, converse

PROMPTS = [[5, 6, 7], [40], [9, 30, 31, 32, 33, 34, 35], [100, 101], [77, 3, 250]]
NEVER = 370


@pytest.fixture(scope="module")
def model(exact_models):
    return copy.deepcopy(exact_models[0])


@torch.no_grad()
def slow_answer(model, prompt, stop_ids, most):
    ids = list(prompt)
    for _ in range(most):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] in stop_ids:
            break
    return tuple(ids[len(prompt) :])


def answered(policy, prompts=PROMPTS, stop_ids=(NEVER,), batch_tokens=1000, turn=0, **decoding):
    how = {"decoding": Decoding(**decoding), "batch_tokens": batch_tokens, "turn": turn}
    return generate_answers(policy, prompts, stop_ids=stop_ids, pad_id=0, **how)


@pytest.fixture(scope="module")
def greedy(model):
    with pytest.MonkeyPatch.context() as patch:
        from tests.support import tiny

        patch.setattr(tiny.LlamaRMSNorm, "forward", tiny.exact_norm)
        return [slow_answer(model, prompt, (), 12) for prompt in PROMPTS]


@pytest.mark.parametrize("batch_tokens", [1, 40, 1000])
def test_greedy_answers_equal_the_plain_loop_in_any_batch(model, scoring, greedy, batch_tokens):
    assert len(set(greedy)) == len(greedy)
    found = answered(scoring(model), batch_tokens=batch_tokens, max_new_tokens=12)
    assert found == [Generated(ids, False) for ids in greedy]
    turned = answered(scoring(model), PROMPTS[::-1], batch_tokens=batch_tokens, max_new_tokens=12)
    assert turned[::-1] == found


def test_answers_end_at_the_first_stop_token_and_are_finished(model, scoring, greedy):
    stop_ids = (greedy[0][4], greedy[2][0], NEVER)
    found = answered(scoring(model), stop_ids=stop_ids, max_new_tokens=12)
    assert [each.ids for each in found] == [slow_answer(model, prompt, stop_ids, 12) for prompt in PROMPTS]
    assert [each.finished for each in found] == [bool(set(ids) & set(stop_ids)) for ids in greedy]
    assert (found[2].ids, found[2].answer) == ((greedy[2][0],), ())
    assert found[0].answer == found[0].ids[:-1]
    unfinished = next(each for each in found if not each.finished)
    assert unfinished.answer == unfinished.ids


def test_the_models_generation_settings_are_ignored_and_restored(model, scoring, greedy):
    own = GenerationConfig(
        repetition_penalty=5.0, do_sample=True, temperature=3.0, min_new_tokens=3, suppress_tokens=[greedy[0][0]]
    )
    model.generation_config, before = own, model.generation_config
    try:
        found = answered(scoring(model), max_new_tokens=12)
        assert model.generation_config is own
    finally:
        model.generation_config = before
    assert [each.ids for each in found] == greedy


def test_scoring_pairs_before_changes_no_answer(model, scoring, greedy, answers):
    """Scoring pairs replaces the model's attention by one for pairs."""
    policy = scoring(model)
    answer_sums(policy, answers, reference=None, batch_tokens=1000, pairs=True)
    assert model.config._attn_implementation.startswith("sepo_")
    assert [each.ids for each in answered(policy, max_new_tokens=12)] == greedy


def test_a_sample_depends_on_seed_turn_and_place_alone(model, scoring):
    policy, hot = scoring(model), {"max_new_tokens": 10, "temperature": 1.5}
    straight = answered(policy, **hot, seed=1)
    assert answered(policy, **hot, seed=1, batch_tokens=1) == straight
    assert answered(policy, PROMPTS[:2], **hot, seed=1) == straight[:2]
    assert answered(policy, **hot, seed=2) != straight
    assert answered(policy, **hot, seed=1, turn=1) != straight
    twice = answered(policy, [PROMPTS[0], PROMPTS[0]], **hot, seed=1)
    assert twice[0] != twice[1]


def test_samples_have_the_distribution_of_the_temperature():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    for temperature in (0.5, 1.0, 2.0):
        noise = _Noise(Decoding(temperature=temperature, seed=7), 0, [(row,) for row in range(20_000)])
        drawn = noise(torch.empty(0), logits.expand(20_000, -1)).argmax(-1)
        found = torch.bincount(drawn, minlength=5).double() / 20_000
        expected = (logits / temperature).softmax(-1).double()
        assert (found - expected).abs().max() < 4 * 0.5 / 20_000**0.5
        assert found[-1] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1, expected 0 .greedy. or"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
    ],
)
def test_invalid_decoding_settings_are_errors(wrong, message):
    with pytest.raises(SepoError, match=message):
        Decoding(**wrong)


def test_prompts_that_cannot_be_answered_are_errors(model, scoring):
    with pytest.raises(SepoError, match="no stop token is set"):
        answered(scoring(model), stop_ids=())
    with pytest.raises(SepoError, match="prompt 1 has no tokens"):
        answered(scoring(model), [[4], []])


def encode(messages, system, tools):
    """Encode one token for each letter, a marker for each role, and one for the start of the assistant's turn."""
    turns = [("system", system)] * bool(system) + [(message["role"], message["content"]) for message in messages]
    marks = {"system": 301, "user": 302, "assistant": 303}
    return [token for role, text in turns for token in (marks[role], *(50 + ord(letter) for letter in text))] + [303]


CHAT_FORMAT = ChatFormat(
    encode, lambda ids: "".join(chr(max(32, token % 128)) for token in ids), (NEVER,), 0, positions=60
)


def prompt(*turns, system=""):
    return Prompt(Question(turns[0], turns, {}), ({"role": "user", "content": turns[0]},), system)


def test_a_second_turn_follows_the_first_answer(model, scoring):
    prompts = [prompt("ab", "cd"), prompt("e", system="be brief"), prompt("fg", "h")]
    answers = converse(scoring(model), prompts, CHAT_FORMAT, decoding=Decoding(max_new_tokens=5), batch_tokens=100)
    assert [len(turns) for turns in answers] == [2, 1, 2]
    for item, turns in zip(prompts, answers, strict=True):
        history = list(item.messages)
        for turn, answer in enumerate(turns):
            if turn:
                history += [
                    {"role": "assistant", "content": turns[0].text},
                    {"role": "user", "content": item.question.turns[1]},
                ]
            assert answer.prompt_ids == encode(history, item.system, "")
            assert answer.generated.ids == slow_answer(model, answer.prompt_ids, (NEVER,), 5)
            assert answer.text == CHAT_FORMAT.decode(answer.generated.ids)


def test_prompts_that_may_exceed_the_positions_are_errors_before_anything_runs():
    item = PromptSet("mt_bench", [prompt("a"), prompt("b" * 20, "c" * 20)], None, "questions.jsonl")
    check_room(item, CHAT_FORMAT, Decoding(max_new_tokens=8))
    with pytest.raises(
        SepoError, match=r"prompt b{20} of questions.jsonl has 44 tokens .* 18 more, but the model has 60"
    ):
        check_room(item, CHAT_FORMAT, Decoding(max_new_tokens=9))
    check_room(item, ChatFormat(encode, str, (1,), 0), Decoding(max_new_tokens=10**6))


def test_random_numbers_of_many_rows_differ():
    noise = _Noise(Decoding(temperature=1.0), 0, [(row,) for row in range(50)])(torch.empty(0), torch.zeros(50, 4))
    assert len(np.unique(noise.numpy().round(6), axis=0)) == 50
