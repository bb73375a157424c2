"""Rows for PreferenceTrainer: encoding with a chat template, scores and rewards, batches."""

import copy
import doctest

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import sepo.training.encoded_pairs
from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.text.revision_prompts import answer_marker, revision_prompt
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
