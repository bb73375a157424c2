"""Token rewards from prompts: scored tokens, values against the model, and reuse of a store."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer, LlamaForCausalLM

from sepo.errors import SepoError
from sepo.forward.revision_rewards import ContrastivePair
from sepo.forward.sequences import ScoredSequence
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.settings import TokenRewardSource
from sepo.scoring import contrastive
from sepo.scoring.contrastive import ContrastiveDatasetScorer, PromptEncoder
from sepo.text.conversations import CONVERSATION
from sepo.text.revision_prompts import answer_marker, quoted_conversation, revision_prompt
from tests.support.hub import LocalModels

IGNORE = -100
TURNS = (
    [{"role": "user", "content": "How many legs has a spider?"}],
    [
        {"role": "user", "content": "Name a city."},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Another."},
    ],
    [{"role": "user", "content": "What colour is the sky?"}],
)
ANSWERS = (
    ("It has 8 legs.", "It has 6 legs and a tail."),
    ("Rome", "The sky is blue, and the grass is green."),
    ("Blue.", "Red."),
)


@pytest.fixture
def words(world):
    return AutoTokenizer.from_pretrained(world / "policy")


def template_of(words, name="chatml"):
    """Return the host's template; one that adds tokens to the tokenizer changes ``words``."""
    return get_template_and_fix_tokenizer(words, DataArguments(template=name))


def encoder(words, *, cutoff_len=128, max_positions=2048, template="chatml"):
    return PromptEncoder(template_of(words, template), words, cutoff_len=cutoff_len, max_positions=max_positions)


def row_of(words, turns, answer, template="chatml"):
    prompt, response = template_of(words, template).encode_oneturn(
        words, [*turns, {"role": "assistant", "content": answer}]
    )
    return prompt + response, [IGNORE] * len(prompt) + response


def rows(words):
    table = {f"{side}_{name}": [] for side in ("chosen", "rejected") for name in ("input_ids", "labels")}
    table[CONVERSATION] = []
    for turns, answers in zip(TURNS, ANSWERS, strict=True):
        for side, answer in zip(("chosen", "rejected"), answers, strict=True):
            ids, labels = row_of(words, turns, answer)
            table[f"{side}_input_ids"].append(ids)
            table[f"{side}_labels"].append(labels)
        table[CONVERSATION].append(json.dumps({"messages": turns, "answers": answers, "system": "", "tools": ""}))
    return Dataset.from_dict(table)


@pytest.mark.parametrize("template", ["chatml", "llama3", "qwen3", "qwen3_nothink"])
def test_the_scored_tokens_are_the_rows_own_after_the_prompt_and_the_marker(words, template):
    made = encoder(words, template=template)
    ids, labels = row_of(words, TURNS[0], ANSWERS[0][0], template)
    pair = made.pair(TURNS[0][0]["content"], ANSWERS[0][0], ids, labels)
    response = [label for label in labels if label != IGNORE]
    for direction, sequence in (("better", pair.better), ("worse", pair.worse)):
        assert sequence.input_ids[sequence.response_start :] == response
        prefix = words.decode(sequence.input_ids[: sequence.response_start])
        assert revision_prompt(TURNS[0][0]["content"], ANSWERS[0][0], direction) in prefix
        assert prefix.endswith(answer_marker(direction))


def test_the_whole_prompt_in_chatml(words):
    ids, labels = row_of(words, TURNS[2], "Blue.")
    pair = encoder(words).pair("What colour is the sky?", "Blue.", ids, labels)
    text = revision_prompt("What colour is the sky?", "Blue.", "worse")
    assert words.decode(pair.worse.input_ids) == (
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        "[The start of a rewritten worse answer]\nBlue.<|im_end|>\n"
    )


def test_a_row_without_a_prompt_has_its_first_token_unscored(words):
    _, labels = row_of(words, TURNS[0], "Eight legs.")
    response = [label for label in labels if label != IGNORE]
    pair = encoder(words).pair("q", "Eight legs.", response, response)
    assert pair.better.input_ids[pair.better.response_start :] == response[1:]
    assert pair.better.response_tokens == len(response) - 1


def test_a_truncated_response_is_quoted_as_far_as_the_row_keeps_it(words):
    ids, labels = row_of(words, TURNS[0], ANSWERS[1][1])
    ids, labels = ids[:-6], labels[:-6]
    text = words.decode(encoder(words).pair("q", ANSWERS[1][1], ids, labels).better.input_ids)
    kept = words.decode([label for label in labels if label != IGNORE])
    assert f"[The start of Assistant's Answer]\n{kept}\n[The end" in text
    assert text.endswith(f"answer]\n{kept}")
    assert ANSWERS[1][1] not in text


def test_long_quotes_are_cut_and_the_response_never_is(words):
    question = " ".join(f"word{index}" for index in range(200))
    answer = "It has 8 legs. " * 20
    ids, labels = row_of(words, TURNS[0], answer)
    response = [label for label in labels if label != IGNORE]
    room = encoder(words).overhead + len(response)
    for positions in (None, room + 3000, room + 150, room + 40, room):
        made = encoder(words, cutoff_len=300, max_positions=positions).pair(question, answer, ids, labels)
        text = words.decode(made.better.input_ids)
        assert made.better.input_ids[made.better.response_start :] == response
        assert positions is None or max(len(made.better.input_ids), len(made.worse.input_ids)) <= positions
        assert len(made.better.input_ids) <= 3 * 300 + encoder(words).overhead
        # The question is truncated first, on its left; then the quoted response, on its right.
        assert ("word199\n" in text) == (positions is None or positions >= room + 150)
        assert ("Answer]\nIt has" in text) == (positions != room)
        assert "word0 " not in text
    with pytest.raises(SepoError, match=rf"has {room - 1} positions. Lower cutoff_len"):
        encoder(words, cutoff_len=300, max_positions=room - 1).pair(question, answer, ids, labels)


def test_two_responses_are_no_pair():
    with pytest.raises(SepoError, match="have different responses"):
        ContrastivePair(ScoredSequence([1, 2, 3], 2), ScoredSequence([1, 2, 4], 2))


@pytest.fixture
def scorer(world, words, tmp_path):
    def make(model="policy", template="chatml", batch_tokens=2048, cutoff_len=128):
        source = TokenRewardSource("prompts", ModelSpec(str(world / model)), "treg_eval_model")
        settings = SimpleNamespace(
            token_rewards=source, token_scores_dir=str(tmp_path / "scores"), score_batch_tokens=batch_tokens,
            head_chunk_tokens=None,
        )  # fmt: skip
        return ContrastiveDatasetScorer(
            settings, tokenizer=words, template=template_of(words, template),
            model_args=LocalModels(compute_dtype=None),
            data_args=SimpleNamespace(template=template, cutoff_len=cutoff_len),
            training_args=SimpleNamespace(world_size=1, process_index=0, device=torch.device("cpu"), output_dir="out"),
        )  # fmt: skip

    return make


@pytest.fixture
def model(world, monkeypatch):
    """Return the scoring model in float64 in place of the host's loader."""
    import contextlib

    from sepo.forward.sequences import ScoringModel

    made = LlamaForCausalLM.from_pretrained(world / "policy", dtype=torch.float64).eval()
    loaded = []
    monkeypatch.setattr(
        contrastive,
        "load_scoring_model",
        lambda spec, **_: loaded.append(spec) or ScoringModel(made, contextlib.nullcontext),
    )
    return SimpleNamespace(model=made, loaded=loaded)


def by_hand(model, words, turns, answer):
    """Compute Eq. 3 from strings and full logits."""
    rewards = []
    for direction in ("better", "worse"):
        text = revision_prompt(quoted_conversation(turns), answer, direction)
        prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        start = words(prompt, add_special_tokens=False)["input_ids"]
        start += words(f"[The start of a rewritten {direction} answer]\n", add_special_tokens=False)["input_ids"]
        response = words(f"{answer}<|im_end|>\n", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([start + response])).logits[0].log_softmax(-1)[len(start) - 1 : -1]
        rewards.append(logps.gather(-1, torch.tensor(response)[:, None])[:, 0])
    return (torch.sigmoid(rewards[0] - rewards[1]) - 0.5).tolist()


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_stored_rewards_are_equation_3(scorer, model, words, batch_tokens):
    data = rows(words)
    joined = scorer(batch_tokens=batch_tokens).attach(data, name="train")
    assert CONVERSATION not in joined.column_names
    for index, (turns, answers) in enumerate(zip(TURNS, ANSWERS, strict=True)):
        for side, answer in zip(("chosen", "rejected"), answers, strict=True):
            expected = by_hand(model.model, words, turns, answer)
            assert joined[f"{side}_token_rewards"][index] == pytest.approx(expected, abs=1e-7)
            assert max(map(abs, expected)) > 1e-3


def test_a_second_run_scores_nothing_and_loads_nothing(scorer, model, words, caplog):
    first = scorer().attach(rows(words), name="train")
    assert len(model.loaded) == 1
    with caplog.at_level(logging.INFO):
        again = scorer().attach(rows(words), name="train")
    assert len(model.loaded) == 1
    assert "token rewards of train found" in caplog.text
    assert again.to_dict() == first.to_dict()


def test_another_model_template_wording_or_conversation_is_another_store(scorer, model, words, monkeypatch):
    data = rows(words)
    changed = data.to_dict()
    changed[CONVERSATION][1] = changed[CONVERSATION][1].replace("Paris", "Rome")
    made = []

    def store_of(data=data, **overrides):
        made.append(scorer(**overrides))
        made[-1].attach(data, name="train")
        return made[-1].stores["train"]

    stores = [store_of(), store_of(model="base"), store_of(template="qwen"), store_of(cutoff_len=64)]
    stores.append(store_of(Dataset.from_dict(changed)))
    monkeypatch.setattr(contrastive, "revision_prompt", lambda *words: "Say it again: " + " ".join(words))
    stores.append(store_of())
    assert len(set(stores)) == len(stores)


def test_rows_of_another_stage_are_refused(scorer, words):
    with pytest.raises(SepoError, match=r"rows of train carry no conversation .* Remove tokenized_path"):
        scorer().attach(rows(words).remove_columns([CONVERSATION]), name="train")


def test_a_response_beyond_the_models_positions_is_refused_before_a_model_is_loaded(scorer, model, words):
    data = rows(words).to_dict()
    data["rejected_input_ids"][1] += [10] * 1900
    data["rejected_labels"][1] += [10] * 1900
    with pytest.raises(SepoError, match=r"a response of \d+ tokens does not fit .* has 2048 positions"):
        scorer().attach(Dataset.from_dict(data), name="train")
    assert not model.loaded


def test_a_model_with_another_tokenizer_is_refused(scorer, world, words, tmp_path):
    from tests.support import tiny

    tiny.tokenizer(["completely other words make other merges zebra quartz"] * 9).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((world / "base" / "config.json").read_text())
    with pytest.raises(SepoError, match=r"treg_eval_model: .* has another tokenizer than the policy"):
        scorer(model=tmp_path / "other")
