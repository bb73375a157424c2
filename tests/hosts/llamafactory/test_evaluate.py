"""`sepo eval` from recipe to files: interpretation of recipes, and a tiny policy compared with plain loops."""

import json

import numpy as np
import pytest
import torch

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory.evaluate import Request, evaluate
from sepo.hosts.llamafactory.evaluate_recipe import evaluation_recipe
from sepo.hosts.llamafactory.expected_answers import JudgeRequest
from sepo.recipe.model_specs import ModelSpec
from sepo.runs.provenance import RECIPE_FILE
from tests.support.recipes import sepo_recipe, write
from tests.support.tolerance import LOG_PROB


def evaluation(**more):
    """Return a recipe for evaluation only."""
    keys = {"model_name_or_path": "models/base", "template": "chatml", "eval_dataset": "pairs", "dataset_dir": "data"}
    return {name: value for name, value in {**keys, **more}.items() if value is not None}


def training(world, tmp_path, **more):
    return sepo_recipe(world, tmp_path / "run", eval_dataset="tiny_pairs", **more)


def read(recipe, tmp_path, *overrides):
    return evaluation_recipe(write(recipe, tmp_path / "recipe.yaml"), overrides)


def test_an_adapter_is_compared_with_its_model(tmp_path):
    found = read(evaluation(adapter_name_or_path="sft,run", bf16=True, cutoff_len=99), tmp_path)
    assert found.policy == ModelSpec("models/base", ("sft", "run"))
    assert found.start == found.reference == ModelSpec("models/base", ("sft",))
    assert (found.part, found.dataset, found.reference_key) == ("eval", "pairs", "adapter_name_or_path")
    assert found.host["eval_dataset"] == "pairs"
    assert (found.host["bf16"], found.host["cutoff_len"], found.host["do_train"]) == (True, 99, False)
    assert "adapter_name_or_path" not in found.host


def test_a_training_recipe_with_what_it_trained(world, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    recipe = training(world, tmp_path, deepspeed="ds_z3_config.json", tokenized_path="tokens", val_size=None)
    found = read(recipe, tmp_path, f"adapter_name_or_path={tmp_path / 'run'}")
    base = ModelSpec(str(world / "policy"))
    assert (found.policy, found.start, found.reference) == (ModelSpec(base.model, (str(tmp_path / "run"),)), base, base)
    assert found.notes == ()
    for dropped in (
        "dataset",
        "oracle_model",
        "learning_rate",
        "output_dir",
        "max_steps",
        "deepspeed",
        "tokenized_path",
    ):
        assert dropped not in found.host
    alone = read(recipe, tmp_path)
    assert (alone.policy, alone.start, alone.reference) == (base, None, None)
    assert f"as the recipe starts; for the trained adapter: adapter_name_or_path={tmp_path / 'run'}" in alone.notes[0]


def test_a_policy_that_continued_from_an_adapter_started_from_it(world, tmp_path):
    """As in training, the reference is the starting policy, its adapter included."""
    recipe = training(world, tmp_path, adapter_name_or_path="sft")
    found = read(recipe, tmp_path, "adapter_name_or_path=run")
    assert (found.policy.adapters, found.start.adapters, found.reference.adapters) == (("run",), ("sft",), ("sft",))
    # The same recipe without do_train only evaluates, so its adapter is not the one that training started from.
    found = read({**recipe, "do_train": False}, tmp_path, "adapter_name_or_path=run")
    assert (found.policy.adapters, found.start.adapters) == (("run",), ())


def test_a_new_adapter_lies_over_the_one_that_it_was_made_on(world, tmp_path):
    recipe = training(world, tmp_path, adapter_name_or_path="sft", create_new_adapter=True)
    with pytest.raises(SepoError, match="on top of sft; set adapter_name_or_path=sft,run"):
        read(recipe, tmp_path, "adapter_name_or_path=run")
    found = read(recipe, tmp_path, "adapter_name_or_path=sft,run")
    assert (found.policy.adapters, found.start.adapters) == (("sft", "run"), ("sft",))


def test_a_full_model_started_from_the_one_in_its_recipe(world, tmp_path):
    recipe = training(world, tmp_path, finetuning_type="full", lora_rank=None, lora_target=None)
    found = read(recipe, tmp_path, "model_name_or_path=run")
    assert (found.policy, found.start, found.reference) == (ModelSpec("run"), *[ModelSpec(str(world / "policy"))] * 2)


def test_the_reference_keys_name_the_reference(tmp_path):
    keys = {"ref_model": "other", "ref_model_adapters": "a,b", "ref_model_quantization_bit": 8}
    found = read(evaluation(adapter_name_or_path="run", quantization_bit=4, **keys), tmp_path)
    assert (found.reference_key, found.reference) == ("ref_model", ModelSpec("other", ("a", "b"), 8))
    assert (found.policy, found.start) == (ModelSpec("models/base", ("run",), 4), ModelSpec("models/base", (), 4))
    found = read(evaluation(adapter_name_or_path="run", ref_model_adapters="sft"), tmp_path)
    assert found.reference == ModelSpec("models/base", ("sft",))
    found = read(evaluation(ref_model="other"), tmp_path)
    assert found.start == found.reference == ModelSpec("other")


def test_which_rows_are_held_out(tmp_path):
    found = read(evaluation(eval_dataset=None, dataset="a,b", val_size=0.2, seed=7), tmp_path)
    assert (found.part, found.dataset, found.host["val_size"], found.host["seed"]) == ("eval", "a,b", 0.2, 7)
    found = read(evaluation(eval_dataset=None, dataset="a"), tmp_path)
    assert (found.part, found.host["dataset"]) == ("train", "a")
    assert "all rows of dataset" in found.notes[0]
    found = read(evaluation(dataset="a", val_size=0.2), tmp_path)
    assert (found.part, found.dataset) == ("eval", "pairs")
    assert not {"dataset", "val_size"} & set(found.host)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cutof_len": 3}, "unknown key 'cutof_len'. Did you mean 'cutoff_len'"),
        ({"select_ratio": 0.3}, "unknown key 'select_ratio'. It is a key of sepo's stages"),
        ({"stage": "sep"}, "unknown stage 'sep'. Did you mean 'sepo'"),
        ({"eval_dataset": None}, "eval_dataset is missing; name a ranking data set of data"),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
        ({"top_p": 0.9}, "top_p is set, but sepo eval decodes greedily or samples"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many', expected a whole number"),
        ({"adapter_name_or_path": "a,b", "quantization_bit": 4}, "2 adapters and quantization_bit is 4"),
        ({"adapter_name_or_path": "a", "resize_vocab": True}, "resize_vocab is set, so the adapter has tokens"),
        ({"mixture_of_depths": "load"}, "mixture_of_depths is set"),
        ({"ref_model": "models/base"}, r"the reference is the evaluated model itself \(models/base\)"),
        ({"policy": {"select_ratio": 0.3}}, r"is a pipeline recipe \(section 'policy'\).*pipeline/policy.yaml"),
    ],
)
def test_invalid_recipes_are_refused(tmp_path, keys, message):
    with pytest.raises(SepoError, match=message):
        read(evaluation(**keys), tmp_path)


def run_folder(tmp_path, marker, recipe=None):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / marker).write_text("{}")
    if recipe is not None:
        (folder / RECIPE_FILE).write_text(json.dumps({"recipe": recipe, "versions": {}}))
    return folder


def test_a_run_directory_stands_for_its_recipe_and_its_model(world, tmp_path):
    recipe = {**training(world, tmp_path, hf_hub_token="(not recorded)"), "adapter_name_or_path": "sft"}
    run = run_folder(tmp_path, "adapter_config.json", recipe)
    found = evaluation_recipe(run, ["max_samples=7"])
    assert (found.policy.adapters, found.start.adapters) == ((str(run),), ("sft",))
    assert (found.host["max_samples"], found.host["template"]) == (7, "chatml")
    assert "hf_hub_token" not in found.host
    assert found.notes == ()
    (run / RECIPE_FILE).write_text(json.dumps({"recipe": {**recipe, "create_new_adapter": True}}))
    found = evaluation_recipe(run)
    assert (found.policy.adapters, found.start.adapters) == (("sft", str(run)), ("sft",))


def test_the_run_directory_of_a_full_model(world, tmp_path):
    recipe = training(world, tmp_path, finetuning_type="full", lora_rank=None, lora_target=None)
    run = run_folder(tmp_path, "config.json", recipe)
    found = evaluation_recipe(run, ["eval_dataset=other"])
    assert (found.policy, found.reference) == (ModelSpec(str(run)), ModelSpec(str(world / "policy")))
    assert found.dataset == "other"


def test_a_run_directory_stands_for_the_commits_that_the_run_used(world, tmp_path):
    """Of hub names: their branches may have moved since."""
    keys = {"model_name_or_path": "acme/policy", "ref_model": "acme/reference", "ref_model_revision": "v2"}
    run = run_folder(tmp_path, "adapter_config.json", training(world, tmp_path, **keys))
    before = evaluation_recipe(run)
    assert (before.policy.revision, before.host.get("model_revision")) == (None, None)
    commits = {"acme/policy": {"main": "a" * 40}, "acme/reference": {"main": "b" * 40, "v2": "c" * 40}}
    (run / "sepo_settings.json").write_text(json.dumps({"commits": commits}))
    found = evaluation_recipe(run)
    assert (found.policy.revision, found.start.revision) == ("a" * 40, "a" * 40)
    assert (found.reference.model, found.reference.revision) == ("acme/reference", "c" * 40)
    assert found.host["model_revision"] == "a" * 40
    assert found.policy.adapters == (str(run),)
    other = evaluation_recipe(run, ["model_name_or_path=acme/other"])
    assert other.policy.revision is None
    assert "model_revision" not in other.host


@pytest.mark.parametrize(
    ("marker", "key"), [("adapter_config.json", "adapter_name_or_path"), ("config.json", "model_name_or_path")]
)
def test_the_error_for_a_directory_without_recipe_has_the_command(tmp_path, marker, key):
    run = run_folder(tmp_path, marker)
    with pytest.raises(
        SepoError, match=rf"a directory without a stored recipe .*: sepo eval recipe.yaml {key}=\S+run$"
    ):
        evaluation_recipe(run)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 3}', "\xff"])
def test_a_damaged_recipe_of_a_run_is_reported(tmp_path, text):
    run = run_folder(tmp_path, "config.json")
    (run / RECIPE_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(SepoError, match="cannot be read as the recipe of a run"):
        evaluation_recipe(run)


def judged(name, generate=1, column="answer", **options):
    return Request(generate=generate, judge=JudgeRequest(name, options, column))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(generate=-1), "--generate is -1"),
        (Request(seed=-3), "--seed is -3"),
        (Request(batch_tokens=0), "--batch-tokens is 0; a number of at least 1"),
        (Request(name="a/b"), "--name is 'a/b'"),
        (
            Request(before=True),
            "--before needs the policy before training, but the recipe has neither an adapter to disable nor a ref_mod",
        ),
        (Request(max_new_tokens=0), "max_new_tokens is 0"),
        (judged("exact", generate=0), "--judge exact judges generated answers .* add --generate N"),
        (judged("exat"), "unknown judge 'exat'; available: exact, .* Did you mean 'exact'"),
        (judged("exact", column=""), "--judge exact compares with expected answers, but no column is named; add"),
        (judged("exact", case="true"), "judge 'exact' has no option 'case'; its options: ignore_case"),
        (judged("regex", extract="("), "does not compile"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_loaded(tmp_path, request_, message):
    with pytest.raises(SepoError, match=message):
        evaluate(write(evaluation(), tmp_path / "recipe.yaml"), request=request_)


def test_two_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SepoError, match="WORLD_SIZE is above 1, but an evaluation runs in one process on one device"):
        evaluate(write(evaluation(), tmp_path / "recipe.yaml"), request=Request())


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory):
    """Train a LoRA adapter that changes the generations of the tiny policy."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(world / "policy"), LoraConfig(r=4, target_modules="all-linear")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("adapter") / "tuned"
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def plain_figures(world, adapter, rows):
    """Compute margins and KL with transformers alone: ChatML by hand, full logits, one row at a time."""
    from peft import PeftModel
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    base = LlamaForCausalLM.from_pretrained(world / "policy").eval()
    tuned = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(world / "policy"), str(adapter)).eval()
    margins, kl, tokens = {"before": [], "after": []}, 0.0, 0
    for row in rows:
        found = {"before": [], "after": []}
        for side in ("chosen", "rejected"):
            question = row["conversations"][0]["value"]
            start = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
            answer = tokenizer.encode(f"{row[side]['value']}<|im_end|>\n")
            ids = torch.tensor([start + answer])
            logs = {role: model(ids).logits[0, len(start) - 1 : -1].double().log_softmax(-1)
                    for role, model in (("before", base), ("after", tuned))}  # fmt: skip
            for role, log_probs in logs.items():
                found[role].append(log_probs.gather(-1, torch.tensor(answer)[:, None]).sum().item())
            if side == "chosen":
                kl += (logs["after"].exp() * (logs["after"] - logs["before"])).sum().item()
                tokens += len(answer)
        for role, (chosen, rejected) in found.items():
            margins[role].append(chosen - rejected)
    return {role: np.array(values) for role, values in margins.items()}, kl / tokens


@pytest.mark.host
def test_an_evaluation_from_recipe_to_files(world, adapter, tmp_path, monkeypatch, capsys):
    for name in ("LLAMAFACTORY_VERBOSITY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "ERROR" if name.startswith("LL") else "0")
    monkeypatch.chdir(tmp_path)
    questions = tmp_path / "question.jsonl"
    questions.write_text('{"question_id": 81, "category": "writing", "turns": ["How many legs?", "And wings?"]}\n')
    recipe = training(world, tmp_path)
    write(recipe, tmp_path / "recipe.yaml")
    words = ["eval", "recipe.yaml", "--before", "--generate", "5", "--max-new-tokens", "6"]
    words += ["--questions", "question.jsonl", f"adapter_name_or_path={adapter}"]
    assert main([*words, "-o", "out"]) == 0
    printed = capsys.readouterr()
    assert "written: out/eval.json" in printed.out
    assert "example" not in printed.out  # the host prints one
    assert main([*words, "-o", "out"]) == 2
    assert "-o out has results already" in capsys.readouterr().err
    values = json.loads((tmp_path / "out" / "eval.json").read_text())
    rows = json.loads((world / "data" / "tiny_pairs.json").read_text())
    margins, kl = plain_figures(world, adapter, rows)
    for role, plain in margins.items():
        summed = values["policies"][role]["preference"]["summed"]
        assert summed["accuracy"]["value"] == pytest.approx((plain > 0).mean())
        assert summed["margin"]["value"] == pytest.approx(plain.mean(), rel=1e-5, abs=LOG_PROB)
    reward = values["policies"]["after"]["preference"]["reward"]
    assert reward["accuracy"]["value"] == pytest.approx((margins["after"] > margins["before"]).mean())
    assert values["policies"]["after"]["kl"]["chosen"]["per_token"]["value"] == pytest.approx(kl, rel=1e-4)
    assert values["policies"]["before"]["kl"]["chosen"]["per_token"]["value"] == 0.0
    assert values["policies"]["before"]["generations"]["heldout"]["kl"]["per_answer"]["value"] == 0.0
    assert values["data"] == {
        "dataset": "tiny_pairs",
        "part": "eval",
        "pairs": 24,
        "template": "chatml",
        "cutoff_len": 128,
    }
    assert values["reference"]["model"] == str(world / "policy")
    assert values["prompts"]["heldout"] == {"dataset": "tiny_pairs", "prompts": 5, "answers": 5}
    generated = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    assert len(generated) == 2 * (5 + 2)
    assert all(
        row["prompt"] == rows[row["id"]]["conversations"][0]["value"]
        for row in generated
        if row["prompts"] == "heldout"
    )
    assert (tmp_path / "out" / "judges" / "mt_bench" / "model_answer" / "tuned-before.jsonl").is_file()
    assert same_answers(world, adapter, generated)
    # With other batches, and in another run, results and generations are the same.
    assert main([*words, "--batch-tokens", "1"]) == 0
    again = json.loads((tmp_path / "eval_output" / "eval.json").read_text())
    assert (tmp_path / "eval_output" / "generations.jsonl").read_text() == (
        tmp_path / "out" / "generations.jsonl"
    ).read_text()
    for role in ("before", "after"):
        close(again["policies"][role]["preference"], values["policies"][role]["preference"])
        close(again["policies"][role]["kl"], values["policies"][role]["kl"])


def close(found, expected):
    """Check that nested numbers agree up to rounding."""
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            close(found[name], expected[name])
    else:
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-4, abs=LOG_PROB))


def same_answers(world, adapter, generated):
    """Check that greedy generations of both policies equal a plain loop over the chat template's own prompts."""
    from peft import PeftModel
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    models = {
        "before": LlamaForCausalLM.from_pretrained(world / "policy").eval(),
        "after": PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(world / "policy"), str(adapter)).eval(),
    }
    for index, row in enumerate(generated):
        messages = [{"role": "user", "content": row["prompt"]}]
        if row["turn"]:
            before = [
                {"role": "user", "content": generated[index - 1]["prompt"]},
                {"role": "assistant", "content": generated[index - 1]["answer"]},
            ]
            messages = [*before, *messages]
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        answer = []
        with torch.no_grad():
            while len(answer) < 6 and (not answer or answer[-1] != tokenizer.eos_token_id):
                answer.append(models[row["policy"]](torch.tensor([ids + answer])).logits[0, -1].argmax().item())
        if tokenizer.decode(answer, skip_special_tokens=True) != row["answer"]:
            return False
    return True


def test_options_of_a_judge_need_a_judge(tmp_path, capsys):
    recipe = str(write(evaluation(), tmp_path / "recipe.yaml"))
    for words, message in (
        (["--expected-column", "answer"], "--expected-column is given without --judge"),
        (["--judge-option", "extract=a"], "--judge-option is given without --judge"),
        (["--judge", "exact", "--judge-option", "extract"], "--judge-option is 'extract', expected NAME=VALUE"),
        (["--judge", "exact", *["--judge-option", "extract=a"] * 2], "--judge-option extract is given twice"),
    ):
        assert main(["eval", recipe, "--generate", "2", *words]) == 2
        assert message in capsys.readouterr().err


def with_answers(world, folder, answer):
    """Write the tiny pairs with a column `answer`, computed from index and prompt; return the data set's directory."""
    rows = json.loads((world / "data" / "tiny_pairs.json").read_text())
    for index, row in enumerate(rows):
        row["answer"] = answer(index, row["conversations"][0]["value"])
    folder.mkdir()
    (folder / "tiny_pairs.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text((world / "data" / "dataset_info.json").read_text())
    return folder


@pytest.mark.host
def test_judged_answers_from_recipe_to_files(world, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "ERROR")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.chdir(tmp_path)
    write(training(world, tmp_path), tmp_path / "recipe.yaml")
    words = ["eval", "recipe.yaml", "--before", "--generate", "9", "--max-new-tokens", "6"]
    words.append(f"adapter_name_or_path={adapter}")
    assert main([*words, "-o", "plain"]) == 0
    plain = [json.loads(line) for line in (tmp_path / "plain" / "generations.jsonl").read_text().splitlines()]
    text = {(row["policy"], row["prompt"]): row["answer"] for row in plain}
    asked = [row["prompt"] for row in plain if row["policy"] == "after"]

    def answer(index, prompt):
        """A third of the prompts has the answer of one policy, a third that of the other, and a third has none."""
        role = (None, "before", "after")[asked.index(prompt) % 3] if prompt in asked else None
        return role and [text[role, prompt], "never"]

    data = with_answers(world, tmp_path / "answers", answer)
    assert any(text["before", prompt] != text["after", prompt] for prompt in asked)
    judged = [*words, "--judge", "exact", "--expected-column", "answer", "--judge-option", "ignore_case=true"]
    capsys.readouterr()
    assert main([*judged, f"dataset_dir={data}", "-o", "judged"]) == 0
    printed = capsys.readouterr().out
    values = json.loads((tmp_path / "judged" / "eval.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "judged" / "generations.jsonl").read_text().splitlines()]
    assert values["settings"]["judge"] == {"name": "exact", "options": {"ignore_case": "true"}, "column": "answer"}
    assert [{name: row[name] for name in plain[0]} for row in rows] == plain
    right = {}
    for role in ("before", "after"):
        found = values["policies"][role]["generations"]["heldout"]["correct"]
        mine = [row for row in rows if row["policy"] == role]
        assert found["verdicts"] == [{name: row[name] for name in ("id", "right", "finished")} for row in mine]
        expected = [row["expected"] and row["answer"].casefold() == row["expected"][0].casefold() for row in mine]
        assert [row["right"] for row in mine] == expected
        right[role] = [value for value in expected if value is not None]
        assert (found["judged"], found["without_expected"]) == (6, 3)
        assert found["right"]["value"] == np.mean(right[role]) >= 0.5
        assert found["right"]["low"] < found["right"]["value"]
        assert found["finished"]["value"] == np.mean([row["finished"] for row in mine if row["right"] is not None])
    assert right["before"] != right["after"]
    change = values["change"]["correct"]["right"]
    assert change["value"] == pytest.approx(np.mean(right["after"]) - np.mean(right["before"]))
    assert "right, of 6 judged" in printed
    for changed, message in (
        ("answers", "has the columns conversations, chosen, rejected, answer, expected answers"),
        ("chosen", "column chosen: the expected answer is {"),
    ):
        assert main([*words, "--judge", "exact", "--expected-column", changed, f"dataset_dir={data}"]) == 2
        assert message in capsys.readouterr().err
    empty = with_answers(world, tmp_path / "empty", lambda index, prompt: " ")
    assert main([*judged, f"dataset_dir={empty}"]) == 2
    assert "none of the 9 prompts of tiny_pairs has an expected answer in the column answer" in capsys.readouterr().err
    twice = with_answers(world, tmp_path / "twice", lambda index, prompt: str(index))
    repeated = json.loads((twice / "tiny_pairs.json").read_text())
    repeated[5]["conversations"] = repeated[2]["conversations"]
    (twice / "tiny_pairs.json").write_text(json.dumps(repeated))
    assert main([*judged, f"dataset_dir={twice}"]) == 2
    assert 'rows 2 and 5 of tiny_pairs have the same prompt and the expected answers "2" and "5"' in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "eval_output").exists()
