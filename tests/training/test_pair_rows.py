"""Rows for PreferenceTrainer: encoding with a chat template, scores and rewards, batches."""

import copy
import doctest
import logging
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import sepo.training.encoded_pairs
from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.text.revision_prompts import answer_marker, revision_prompt
from sepo.text.token_texts import TokenTexts
from sepo.training import PairCollator, add_steps, encode_pairs, reward_rows, score_rows
from sepo.training.reward_columns import token_rewards
from tests.support import tiny
from tests.support.steps import slow_log_probs

PAIRS = [
    {"prompt": "How many legs has a spider?", "chosen": "It has 8 legs.", "rejected": "It has 6 legs. Or more!"},
    {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Sky?"},
        ],
        "chosen": {"role": "assistant", "content": "Blue."},
        "rejected": [{"role": "assistant", "content": "Green, on a clear day."}],
    },
]


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


def load(world, name):
    return LlamaForCausalLM.from_pretrained(world / name, dtype=torch.float64).eval()


def test_the_template_joins_prompt_and_response(words):
    first, second = encode_pairs(PAIRS, words)
    prompt = "<|im_start|>user\nHow many legs has a spider?<|im_end|>\n<|im_start|>assistant\n"
    assert words.decode(first["prompt_ids"]) == prompt
    assert words.decode(first["rejected_ids"]) == "It has 6 legs. Or more!<|im_end|>\n"
    assert words.decode(second["prompt_ids"]).startswith("<|im_start|>system\nYou are")
    assert words.decode(second["chosen_ids"]) == "Blue.<|im_end|>\n"
    assert words.decode(second["rejected_ids"]).startswith("Green")
    assert first["prompt"] == PAIRS[0]["prompt"]


def test_max_tokens_truncates_the_end_of_responses(words):
    (whole,) = encode_pairs(PAIRS[:1], words)
    room = len(whole["prompt_ids"]) + 3
    (cut,) = encode_pairs(PAIRS[:1], words, max_tokens=room)
    assert cut["prompt_ids"] == whole["prompt_ids"]
    assert [cut[f"{side}_ids"] for side in ("chosen", "rejected")] == [
        whole[f"{side}_ids"][:3] for side in ("chosen", "rejected")
    ]
    with pytest.raises(SepoError, match=r"prompt of row 0 has .* max_tokens is 4, so no response fits"):
        encode_pairs(PAIRS[:1], words, max_tokens=4)


def test_rows_without_room_and_pairs_of_the_same_responses_are_skipped_and_counted(words, caplog):
    long = {"prompt": "Sky? " * 40, "chosen": "Blue.", "rejected": "Green."}
    same = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue."}
    with caplog.at_level(logging.INFO):
        made = encode_pairs([long, PAIRS[0], same, long, PAIRS[1]], words, max_tokens=80)
    assert [row["prompt_ids"] for row in made] == [row["prompt_ids"] for row in encode_pairs(PAIRS, words)]
    (record,) = caplog.records
    lines = [re.sub(" +", " ", line).strip() for line in record.getMessage().splitlines()[2:]]
    assert lines[0] == "pairs 5 given"
    assert lines[1].startswith("2 skipped the prompt has max_tokens 80 or more '...")
    assert lines[2].startswith("1 skipped both responses have the same tokens")
    assert lines[3] == "2 used"
    with pytest.raises(SepoError, match="no row is left to train on: both responses have the same tokens"):
        encode_pairs([same], words)
    assert encode_pairs([], words) == []


def test_tokens_of_the_template_may_not_be_selected(words):
    """Of ChatML the line break after the end of turn, and an empty thought if the template writes one."""
    thinking = copy.deepcopy(words)
    content = "{{ m.content }}"
    thinking.chat_template = words.chat_template.replace(
        content, "{% if m.role == 'assistant' and '</think>' not in m.content %}<think></think>{% endif %}" + content
    )
    rows = [*PAIRS, {"prompt": "?", "chosen": "<think>8?</think>8.", "rejected": "6."}]
    for tokenizer, before in ((words, ""), (thinking, "<think></think>")):
        for row, made in zip(rows, encode_pairs(rows, tokenizer), strict=True):
            for side in ("chosen", "rejected"):
                parts = {True: [], False: []}
                for token, may in zip(made[f"{side}_ids"], made[f"{side}_candidates"], strict=True):
                    parts[may].append(token)
                thought = "<think>8" in str(row[side])
                assert words.decode(parts[False]) == ("" if thought else before) + "\n"
                assert words.decode(parts[True]).endswith("<|im_end|>")
        method = resolve_method("sepo", chosen_ratio=1.0, rejected_ratio=1.0)
        scored = [{**row, **{f"{s}_scores": [0.0] * len(row[f"{s}_ids"]) for s in ("chosen", "rejected")}}
                  for row in encode_pairs(rows, tokenizer)]  # fmt: skip
        batch = PairCollator(method)(scored)
        count = sum(sum(row[f"{side}_candidates"]) for row in scored for side in ("chosen", "rejected"))
        assert int(batch["selection"].sum()) == count == int(batch["candidates"].sum())
    bare = copy.deepcopy(words)
    bare.chat_template = words.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    assert not [name for row in encode_pairs(PAIRS, bare) for name in row if "candidates" in name]


def test_responses_cut_to_tokens_of_the_template_are_skipped(words, caplog):
    """Nothing of them could be selected."""
    thinking = copy.deepcopy(words)
    content = "{{ m.content }}"
    thinking.chat_template = words.chat_template.replace(
        content, "{% if m.role == 'assistant' %}<think></think>{% endif %}" + content
    )
    whole = encode_pairs(PAIRS, thinking)
    before = whole[0]["chosen_candidates"].index(True)
    lengths = [len(row["prompt_ids"]) for row in whole]
    assert lengths[0] < lengths[1]
    (kept,) = encode_pairs(PAIRS, thinking, max_tokens=lengths[1] + before)
    assert kept["prompt_ids"] == whole[0]["prompt_ids"]
    assert "1 skipped  max_tokens leaves only tokens of the chat template of a response" in caplog.text
    with pytest.raises(SepoError, match="no row is left to train on: max_tokens leaves only tokens of the chat"):
        encode_pairs(PAIRS[1:], thinking, max_tokens=lengths[1] + before)


def test_steps_are_those_of_the_text(words):
    texts = TokenTexts(words)
    ids = words.encode("</think>1. One.\n2. Two.")
    before = len(words.encode("</think>"))
    row = {f"{side}_ids": ids for side in ("chosen", "rejected")}
    (made,) = add_steps([{**row, "chosen_candidates": [False] * before + [True] * (len(ids) - before)}], words)
    assert made["chosen_steps"] == [0] * before + texts.steps(ids[before:])
    assert made["rejected_steps"] == texts.steps(ids)
    assert made["chosen_steps"] != made["rejected_steps"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "?", "chosen": "a", "rejected": "b"},
            "row 0 has the columns question, chosen, rejected, expected",
        ),
        ({"prompt": "?", "chosen": "", "rejected": "b"}, "'chosen' of row 0 is ''"),
        ({"prompt": "?", "chosen": "a"}, "'rejected' of row 0 is 'None'"),
        ({"prompt": "?", "chosen": "a", "rejected": [{"content": "b"}] * 2}, "expected one response"),
    ],
)
def test_rows_that_are_not_pairs_raise(words, row, message):
    with pytest.raises(SepoError, match=message):
        encode_pairs([row], words)


def test_unsupported_templates_raise(words):
    changed = copy.deepcopy(words)
    changed.chat_template = "{{ messages | length }}" + words.chat_template
    with pytest.raises(SepoError, match="writes the prompt of row 0 differently"):
        encode_pairs(PAIRS, changed)
    changed.chat_template = None
    with pytest.raises(SepoError, match="has no chat template"):
        encode_pairs(PAIRS, changed)


def test_scores_are_the_oracles_log_ratios(world, words):
    rows = encode_pairs(PAIRS, words)
    oracle, base = load(world, "oracle").train(), load(world, "base")
    seen = []
    scored = score_rows(rows, oracle=oracle, base=base, batch_tokens=64, on_batch=seen.append)
    assert sum(seen) == 4
    assert oracle.training
    with torch.no_grad():
        for row in scored:
            for side in ("chosen", "rejected"):
                ids = [*row["prompt_ids"], *row[f"{side}_ids"]]
                labels = [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]
                result, target = (torch.stack(slow_log_probs(m.eval(), ids, labels)) for m in (oracle, base))
                assert row[f"{side}_scores"] == pytest.approx((result - target).tolist(), rel=1e-4, abs=1e-6)
    assert "chosen_scores" not in rows[0]


def test_a_peft_oracle_is_its_own_base_without_the_adapter(world, words):
    rows = encode_pairs(PAIRS[:1], words)
    adapted = get_peft_model(load(world, "base"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(SepoError, match="all scores are zero"):  # a new adapter changes nothing
        score_rows(rows, oracle=adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    expected = score_rows(rows, oracle=adapted, base=load(world, "base"))
    assert score_rows(rows, oracle=adapted) == expected


def test_unsuitable_scoring_models_raise(world, words):
    rows, oracle = encode_pairs(PAIRS, words), load(world, "oracle")
    for base in (oracle, None):
        with pytest.raises(SepoError, match="the oracle and its base are the same model"):
            score_rows(rows, oracle=oracle, base=base)
    foreign = [{**row, "chosen_ids": [99999]} for row in rows]
    with pytest.raises(SepoError, match=r"token id 99999, expected ids below .* LlamaForCausalLM"):
        score_rows(foreign, oracle=oracle, base=load(world, "base"))


def test_rewards_compare_the_two_prompts(world, words):
    """Row by row from full logits: the response's own tokens after each prompt with its marker line."""
    rows, model = encode_pairs(PAIRS[:1], words), load(world, "policy")
    (row,) = reward_rows(rows, model=model, tokenizer=words)
    for side in ("chosen", "rejected"):
        logps = {}
        for direction in ("better", "worse"):
            content = revision_prompt(PAIRS[0]["prompt"], PAIRS[0][side], direction)
            text = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n{answer_marker(direction)}"
            prefix = words.encode(text, add_special_tokens=False)
            labels = [-100] * len(prefix) + row[f"{side}_ids"]
            with torch.no_grad():
                logps[direction] = torch.stack(slow_log_probs(model, prefix + row[f"{side}_ids"], labels))
        expected = torch.sigmoid(logps["better"] - logps["worse"]) - 0.5
        assert row[f"{side}_token_rewards"] == pytest.approx(expected.tolist(), abs=1e-6)
    long = [{**row, "prompt": "word " * 3000}]
    with pytest.raises(SepoError, match=r"row 0 has \d+ tokens with T-REG's prompt.* 2048 positions"):
        reward_rows(long, model=model, tokenizer=words)


def test_an_oracles_scores_can_replace_rewards(world, words):
    method = resolve_method("dpo_reg")
    (row,) = score_rows(encode_pairs(PAIRS[:1], words), oracle=load(world, "oracle"), base=load(world, "base"))
    rewards = token_rewards(PairCollator(method)([row]))
    expected = torch.sigmoid(torch.tensor(row["chosen_scores"])) - 0.5
    start = len(row["prompt_ids"])
    torch.testing.assert_close(rewards[0, start : start + len(expected)], expected)
    given = {**row, "chosen_token_rewards": [0.25] * len(expected)}
    given["rejected_token_rewards"] = [0.0] * len(row["rejected_ids"])
    assert token_rewards(PairCollator(method)([given])).max() == 0.25


def test_steps_follow_the_sentences(words):
    rows = add_steps(encode_pairs(PAIRS[:1], words), words)
    assert len(rows[0]["rejected_steps"]) == len(rows[0]["rejected_ids"])
    assert set(rows[0]["chosen_steps"]) == {0}
    assert set(rows[0]["rejected_steps"]) == {0, 1}
    method = resolve_method("simpo", token_scorer="confidence", unit="step")
    assert PairCollator(method)(rows)["steps"].max() == 1
    with pytest.raises(SepoError, match=r"unit 'step' reads .*add_steps adds them"):
        PairCollator(method)(encode_pairs(PAIRS[:1], words))


def test_the_scope_dataset_requires_counts(world, words):
    rows = score_rows(encode_pairs(PAIRS[:1], words), oracle=load(world, "oracle"), base=load(world, "base"))
    method = resolve_method("sepo", scope="dataset")
    with pytest.raises(SepoError, match=r"scope 'dataset' reads .* no chosen_counts, rejected_counts"):
        PairCollator(method)(rows)
    batch = PairCollator(method)([{**rows[0], "chosen_counts": 2, "rejected_counts": 1}])
    assert batch["selection"].sum(-1).tolist() == [2, 1]


def test_docstring_examples():
    results = doctest.testmod(sepo.training.encoded_pairs)
    assert results.attempted
    assert not results.failed
