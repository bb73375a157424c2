"""`sepo sample` from recipe to file: what a line has, interruption and continuation, refused options."""

import json

import pytest
import torch

from sepo.cli import main
from sepo.errors import SepoError
from sepo.evaluation.sample_file import SampleFile
from sepo.hosts.llamafactory.evaluate_recipe import SAMPLING, evaluation_recipe
from sepo.hosts.llamafactory.expected_answers import JudgeRequest
from sepo.hosts.llamafactory.sampled_responses import SampleRequest, sample
from sepo.recipe.model_specs import ModelSpec
from tests.support.recipes import sepo_recipe, write

EVALUATION = {
    "model_name_or_path": "models/base", "template": "chatml", "eval_dataset": "pairs", "dataset_dir": "data",
}  # fmt: skip


def judged(name, column="answer", **options):
    return SampleRequest(judge=JudgeRequest(name, options, column))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SampleRequest(samples=0), "--samples is 0; a number of at least 1"),
        (SampleRequest(prompts=0), "--prompts is 0; a number of at least 1"),
        (SampleRequest(seed=-1), "--seed is -1"),
        (SampleRequest(batch_tokens=0), "--batch-tokens is 0"),
        (SampleRequest(samples=2, temperature=0.0), "--samples is 2 and the temperature 0, so all responses to a"),
        (SampleRequest(top_p=1.5), "top_p is 1.5, expected a number above 0 and at most 1"),
        (judged("exat"), "unknown judge 'exat'"),
        (judged("exact", column=""), "no column is named; add --expected-column"),
        (judged("regex", extract="("), "does not compile"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_loaded(tmp_path, request_, message):
    with pytest.raises(SepoError, match=message):
        sample(write(EVALUATION, tmp_path / "recipe.yaml"), request=request_)


def test_the_recipes_decoding_keys(tmp_path):
    keys = {"top_p": 0.9, "temperature": 0.6, "max_new_tokens": 7}
    recipe = write({**EVALUATION, **keys}, tmp_path / "recipe.yaml")
    assert evaluation_recipe(recipe, use=SAMPLING).decoding == keys
    with pytest.raises(SepoError, match="top_k is set, but sepo sample samples with a temperature and top_p alone; re"):
        evaluation_recipe(recipe, ["top_k=5"], use=SAMPLING)
    with pytest.raises(SepoError, match=r"top_p is set, but sepo eval decodes greedily .* \(only max_new_tokens, temp"):
        evaluation_recipe(recipe)


def test_a_model_that_is_its_own_reference_can_be_sampled(tmp_path):
    recipe = write({**EVALUATION, "ref_model": "models/base"}, tmp_path / "recipe.yaml")
    assert evaluation_recipe(recipe, use=SAMPLING).policy.model == "models/base"


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "ERROR")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.host
def test_samples_from_recipe_to_file(world, tmp_path, quiet, monkeypatch, capsys):
    from transformers import AutoTokenizer

    rows = json.loads((world / "data" / "tiny_pairs.json").read_text())
    for index, row in enumerate(rows):
        row["answer"] = "[a-m]" if index % 2 else None
    rows[3]["conversations"] = rows[1]["conversations"]  # the same prompt twice, sampled once
    data = tmp_path / "data"
    data.mkdir()
    (data / "tiny_pairs.json").write_text(json.dumps(rows))
    (data / "dataset_info.json").write_text((world / "data" / "dataset_info.json").read_text())
    recipe = sepo_recipe(world, tmp_path / "run", dataset_dir=str(data), temperature=2.0)
    write(recipe, tmp_path / "recipe.yaml")
    words = ["sample", "recipe.yaml", "--samples", "3", "--max-new-tokens", "6", "--top-p", "0.95"]
    words += ["--judge", "regex", "--expected-column", "answer"]

    assert main([*words, "-o", "whole"]) == 0
    printed = capsys.readouterr().out
    assert "69 responses to 23 prompts of tiny_pairs" in printed
    assert "right, of 11 judged prompts" in printed
    text = (tmp_path / "whole" / "samples.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["id"] for line in lines] == [index for index in range(24) if index != 3]
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    for line in lines:
        assert line["prompt"] == rows[line["id"]]["conversations"][0]["value"]
        assert line["expected"] == rows[line["id"]]["answer"]
        assert len(line["responses"]) == 3
        for each in line["responses"]:
            assert each["tokens"] <= 6 - each["finished"]
            found = None if line["expected"] is None else bool(set(each["text"]) & set("abcdefghijklm"))
            assert each["right"] == found
    assert len({each["text"] for line in lines for each in line["responses"]}) > 40
    verdicts = {each["right"] for line in lines for each in line["responses"]}
    assert verdicts == {True, False, None}

    # Interrupted after five prompts, then continued with other batches: the file is the same, to the byte.
    add, added = SampleFile.add, []

    def interrupted(self, row):
        if len(added) == 5:
            raise KeyboardInterrupt
        added.append(row["id"])
        add(self, row)

    monkeypatch.setattr(SampleFile, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*words, "-o", "parts"])
    monkeypatch.setattr(SampleFile, "add", add)
    begun = (tmp_path / "parts" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in begun] == added
    assert main([*words, "-o", "parts", "--batch-tokens", "100"]) == 0
    assert "continued: 5 of 23 prompts are in parts already" in capsys.readouterr().out
    assert (tmp_path / "parts" / "samples.jsonl").read_text() == text

    # A complete run loads no model, and other options, rows or weights are refused.
    module = "sepo.hosts.llamafactory.sampled_responses.load_scoring_model"
    monkeypatch.setattr(module, lambda *_, **__: pytest.fail("a model was loaded"))
    assert main([*words, "-o", "parts"]) == 0
    assert "continued: 23 of 23 prompts" in capsys.readouterr().out
    for changed, message in (
        (["--seed", "4"], "-o parts has samples with seed 0, and this run has 4"),
        (["--samples", "2"], "-o parts has samples with samples 3, and this run has 2"),
        (["--prompts", "4"], '-o parts has samples with prompts {"number": 23'),
        (["--judge-option", "ignore_case=true"], "-o parts has samples with judge"),
        ([f"model_name_or_path={world / 'base'}"], '-o parts has samples with model {"model": "'),
    ):
        assert main([*words, "-o", "parts", *changed]) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "parts" / "samples.jsonl").read_text() == text
    stored = json.loads((tmp_path / "parts" / "sampling.json").read_text())
    assert stored["settings"]["temperature"] == 2.0
    assert stored["notes"]["policy"] == ModelSpec(str(world / "policy")).as_dict()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    check_greedy(world, tokenizer, tmp_path)


def check_greedy(world, tokenizer, tmp_path):
    """Check that greedy responses to drawn prompts equal a plain loop over the template's prompts."""
    from transformers import LlamaForCausalLM

    words = ["sample", "recipe.yaml", "--max-new-tokens", "6", "--temperature", "0", "--prompts", "4"]
    assert main([*words, "-o", "greedy"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "greedy" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    model = LlamaForCausalLM.from_pretrained(world / "policy").eval()
    for line in lines:
        assert "expected" not in line
        messages = [{"role": "user", "content": line["prompt"]}]
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        found = []
        with torch.no_grad():
            while len(found) < 6 and (not found or found[-1] != tokenizer.eos_token_id):
                found.append(model(torch.tensor([ids + found])).logits[0, -1].argmax().item())
        (response,) = line["responses"]
        finished = found[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(found, skip_special_tokens=True)
        assert response == {"text": text, "tokens": len(found) - finished, "finished": finished}
