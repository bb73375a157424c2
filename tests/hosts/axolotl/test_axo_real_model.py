"""ConfPO over a real model and real pairs in both hosts: the tokens that each run records, and a twin in float64."""

import json
from pathlib import Path

import pytest
import torch

from sepo.runs.token_samples_reader import read_record
from tests.support import axo, tiny

SIDES = ("chosen", "rejected")
PAIRS = 4
SYSTEM = "Answer in plain words."
"""The default system prompts of the model's template differ between the hosts by a full stop."""
NEAR = 1e-5
"""Difference to the mean at which float32 and float64 may decide differently."""


@pytest.fixture(scope="module")
def real_model(tmp_path_factory):
    """Directory of the demonstration's model, converted in the other environment, which has its weights."""
    code = "from sepo.demo.model import default_model_directory as d, prepare_model as p; print(p(d(), progress=False))"
    return Path(axo.run_other(["-c", code], tmp_path_factory.mktemp("convert")).stdout.split()[-1])


def real_pairs():
    """Return pairs of the shared data, or generated ones, with responses of about a dozen tokens and more."""
    path = axo.SHARED / "data" / "pandalm_pairs.json"
    rows = json.loads(path.read_text()) if path.is_file() else tiny.pairs(3 * PAIRS)
    turns = [[row["conversations"][0], row["chosen"], row["rejected"]] for row in rows]
    fitting = [
        row
        for row, texts in zip(rows, turns, strict=True)
        if len(row["conversations"]) == 1 and all(10 < len(text["value"].strip()) < 400 for text in texts)
        and all(text["value"] == text["value"].strip() for text in texts)
    ]  # fmt: skip
    of_prompts = {row["conversations"][0]["value"]: row for row in fitting}
    return [{**row, "system": SYSTEM} for row in list(of_prompts.values())[:PAIRS]]


def below_the_mean(model, words, question, answer):
    """Return the texts of the tokens of a response up to its end of turn, which are selected, and which are near."""
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    prompt = words.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    start = len(words(prompt, add_special_tokens=False)["input_ids"])
    ids = words(f"{prompt}{answer}<|im_end|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        p = model(ids).logits[0, start - 1 : -1].softmax(-1).gather(-1, ids[0, start:, None])[:, 0]
    near = (p - p.mean()).abs() < NEAR
    return [words.decode([token]) for token in ids[0, start:].tolist()], (p < p.mean()).tolist(), near.tolist()


def recorded(folder):
    """Return for each response of a run's record, by its text, whether each token up to the end of turn is selected."""
    pairs, damaged = read_record(folder)
    assert (len(pairs), damaged) == (PAIRS, 0)
    found = {}
    for pair in pairs:
        for side in SIDES:
            answer = getattr(pair, side)
            end = len(answer.tokens) if answer.candidates is None else sum(answer.candidates)
            assert not any(answer.selected[end:])
            found["".join(answer.tokens[: end - 1]), side] = list(answer.selected[:end])
    return found


def test_confpo_selects_the_tokens_below_the_mean_probability_in_both_hosts(real_model, tmp_path, train):
    rows = real_pairs()
    assert len(rows) == PAIRS
    data = tmp_path / "data"
    data.mkdir()
    (data / "pairs.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "system": "system"}
    entry = {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True, "columns": columns}
    (data / "dataset_info.json").write_text(json.dumps({"pairs": entry}))
    system = {"role": "system", "content": SYSTEM}
    conversations = [{**row, "messages": [system, *row["messages"]]} for row in axo.messages(rows)]
    axo.save_rows(data / "pairs.jsonl", conversations)

    # A learning rate of almost 0: all steps select with the model as it is.
    recipe = {
        "stage": "sepo", "objective": "confpo", "do_train": True, "finetuning_type": "lora", "template": "smollm2",
        "model_name_or_path": str(real_model), "dataset_dir": str(data), "dataset": "pairs", "cutoff_len": 512,
        "output_dir": str(tmp_path / "theirs"), "use_cpu": True, "report_to": "none", "max_steps": 2,
        "per_device_train_batch_size": 2, "learning_rate": 1e-12, "save_strategy": "no", "lora_target": "q_proj",
        "enable_thinking": False,
    }  # fmt: skip
    axo.run_other(["-m", "sepo", "train", axo.write(recipe, tmp_path / "recipe.yaml")], tmp_path)
    config = axo.config(
        tmp_path, tmp_path / "ours", base_model=str(real_model), rl="sepo", sepo={"objective": "confpo"}, max_steps=2,
        chat_template="tokenizer_default", special_tokens=None, datasets=[axo.rows_at(data / "pairs.jsonl")],
        learning_rate=1e-12, lora_target_linear=None, lora_target_modules=["q_proj"],
    )  # fmt: skip
    train(config)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(real_model)
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float64).eval()
    theirs, ours = recorded(tmp_path / "theirs"), recorded(tmp_path / "ours")
    assert theirs == ours
    assert len(ours) == 2 * PAIRS
    tokens = 0
    for row in rows:
        for side in SIDES:
            text = row[side]["value"]
            spelled, expected, near = below_the_mean(model, words, row["conversations"][0]["value"], text)
            assert "".join(spelled) == f"{text}<|im_end|>"
            selected = ours[text, side]
            assert len(selected) == len(expected)
            assert [a for a, close in zip(selected, near, strict=True) if not close] == [
                b for b, close in zip(expected, near, strict=True) if not close
            ]
            assert sum(near) <= 1
            assert 0 < sum(expected) < len(expected)
            tokens += len(expected)
    assert tokens > 10 * PAIRS
