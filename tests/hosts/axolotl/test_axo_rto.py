"""Stage `rto` in Axolotl: prompts, runs on tiny models, equality with its GRPO, rewards of tokens, resume, refusals."""

import copy
import json

import pytest
import torch

from sepo.errors import SepoError
from sepo.judges import find_judge
from sepo.online.prompts import PROMPT, ROW
from tests.support import axo, rewarded, tiny

JUDGE = {"judge": "contains", "expected_column": "expected"}
ANSWERS = ["e", "i"]
"""Expected of every response, so that a random policy is right about every second time."""

FREE = {"rto_beta1": 0, "rto_beta2": 0}
"""Without rewards of tokens."""

FUNCTIONS = """
from sepo.judges import find_judge


def prompts(cfg, **kwargs):
    def transform(sample, tokenizer=None):
        return {"prompt": sample["messages"][:-1], "expected": sample["expected"]}

    return transform, {"remove_columns": ["messages"]}


def texts(cfg, **kwargs):
    return lambda sample: {"prompt": sample["messages"][0]["content"]}


def right(prompts, completions, expected, **kwargs):
    judge = find_judge("contains")
    answers = zip(completions, expected, strict=True)
    return [float(judge(completion[0]["content"], values)) for completion, values in answers]
"""


def conversations(count=8):
    """Return rows of conversations with expected answers."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Write a word with {letter}, number {index}."},
                {"role": "assistant", "content": letter},
            ],
            "expected": ANSWERS,
        }
        for index, letter in zip(range(count), "abcdefgh" * 4, strict=False)
    ]


def config(root, output, rows, *, block=None, kind="chat_template.default", entry=None, **more):
    """Return the config of a run whose optimizer steps have 8 responses, 4 to each of 2 prompts."""
    path = axo.save_rows(output.parent / "prompts.jsonl", rows)
    made = {
        "rl": "rto", "datasets": [{**axo.rows_at(path), "type": kind, **(entry or {})}], "micro_batch_size": 4,
        "gradient_accumulation_steps": 2, "max_steps": 2, "warmup_steps": 0,
        "trl": {"num_generations": 4, "max_completion_length": 6},
        "sepo": {**JUDGE, **(FREE if block is None else block)}, **more,
    }  # fmt: skip
    return axo.config(root, output, **made)


def with_oracle(root):
    return {"oracle_model": str(root / "oracle"), "oracle_base_model": str(root / "base")}


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module with functions for GRPO, ``grpo_functions``."""
    (tmp_path / "grpo_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def prompts(root, plugin, tmp_path):
    """Return a function that loads the prompts of a config for these rows, in the order of the file."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    from sepo.hosts.axolotl.online.data import load_prompts

    def load(rows, **more):
        made = config(root, tmp_path / "out", rows, shuffle_merged_datasets=False, **more)
        made["dataset_prepared_path"] = str(tmp_path / f"prepared-{len(list(tmp_path.iterdir()))}")
        cfg = load_cfg(str(axo.write(made, tmp_path / "config.yaml")))
        resolved = PluginManager.get_instance().plugins[axo.PLUGIN].resolved
        return load_prompts(cfg, resolved, preprocess=False)

    return load


def in_float64(root, trainer, batch):
    """Return the advantages of a batch [B, T], by loops over single responses, from models in float64."""
    from transformers import AutoModelForCausalLM

    policy = copy.deepcopy(trainer.model).double().eval()
    models = {
        "oracle": AutoModelForCausalLM.from_pretrained(root / "oracle", dtype=torch.float64).eval(),
        "base": AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float64).eval(),
        "policy": policy,
    }

    def logps(model, prompt, response):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        return [logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(response)]

    judge, rto = find_judge("contains"), trainer.rto
    ahead, judged = [], []
    for index in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][index][batch["prompt_mask"][index].bool()].tolist()
        response = batch["completion_ids"][index][batch["completion_mask"][index].bool()].tolist()
        found = {name: logps(model, prompt, response) for name, model in models.items()}
        with policy.disable_adapter():
            found["reference"] = logps(policy, prompt, response)
        dense = [
            rto.beta1 * (oracle - base) - rto.beta2 * (now - before)
            for oracle, base, now, before in zip(
                found["oracle"], found["base"], found["policy"], found["reference"], strict=True
            )
        ]
        ahead.append([sum(dense[place:]) for place in range(len(dense))])
        text = trainer.processing_class.decode(response, skip_special_tokens=True)
        judged.append(float(judge(text, ANSWERS)))
    advantages = torch.zeros(batch["completion_ids"].shape, dtype=torch.float64)
    for index, returns in enumerate(ahead):
        start = index - index % rto.samples
        group = range(start, start + rto.samples)
        for place, value in enumerate(returns):
            others = [ahead[other][place] for other in group if place < len(ahead[other])]
            mean = sum(judged[other] for other in group) / rto.samples + sum(others) / len(others)
            advantages[index, place] = judged[index] + value - mean
    return advantages


def test_rewards_of_tokens_equal_a_loop_in_float64(root, tmp_path, train, losses):
    """Of a run with an oracle, a reference and a selection, whose records are checked as well."""
    output = tmp_path / "out"
    block = {
        **with_oracle(root), "rto_beta1": 0.3, "rto_beta2": 0.2, "rto_scale": "none", "token_scorer": "oracle",
        "select_ratio": 0.5,
    }  # fmt: skip
    trainer = train(config(root, output, conversations(), block=block))
    seen = losses(trainer)
    assert len(seen) == 2
    assert all(torch.isfinite(torch.tensor(seen)))
    assert any(bool(weight.any()) for name, weight in adapter(output).items() if "lora_B" in name)
    assert not (output / "ref").exists()  # no copy of the adapter as a reference

    trainer.model.train()
    rows = [trainer.train_dataset[index] for index in (0, 1) for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    expected = in_float64(root, trainer, batch)
    torch.testing.assert_close(batch["advantages"].double(), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=1).max() > 1e-3  # not one advantage for each response
    tokens = batch["completion_mask"].sum(1)
    assert batch["sepo_selection"].sum(1).tolist() == [max(1, int(count) // 2) for count in tokens]

    entries = [json.loads(line) for line in (output / "sepo_log.jsonl").read_text().splitlines()]
    assert {entry["event"] for entry in entries} == {"prepare", "rows", "begin", "log", "end"}
    first, second = (entry for entry in entries if "loss" in entry)
    assert 0 < first["rewards/judge/mean"] < 1
    assert 0.3 < first["select/ratio"] <= 0.5
    assert first["rto/oracle_reward"] != 0
    assert abs(first["kl"]) < 1e-6 < abs(second["kl"])  # the reference is the policy at its start
    settings = json.loads((output / "sepo_settings.json").read_text())
    assert (settings["stage"], settings["rewards"]["judge"]) == ("rto", "contains")
    assert settings["hyperparameters"]["samples"] == 4  # of the block trl
    assert json.loads((output / "_sepo_recipe.json").read_text())["recipe"]["sepo"]["stage"] == "rto"


def test_without_token_rewards_the_losses_are_those_of_the_hosts_grpo(root, tmp_path, train, losses, functions):
    kind, found = "grpo_functions.prompts", []
    trl = {"num_generations": 4, "max_completion_length": 6, "scale_rewards": "batch", "loss_type": "dapo"}
    ours = config(root, tmp_path / "ours", conversations(), kind=kind, trl=trl)
    grpo = {**trl, "reward_funcs": ["grpo_functions.right"], "beta": 0.0}
    hosts = config(root, tmp_path / "hosts", conversations(), kind=kind, rl="grpo", trl=grpo)
    for made in (ours, {**hosts, "sepo": None}):
        found.append(train({name: value for name, value in made.items() if value is not None}))
    rto, host = found
    assert type(host).__name__ == "AxolotlGRPOTrainer"
    assert losses(rto) == pytest.approx(losses(host), rel=1e-4, abs=1e-7)
    norms = [[entry["grad_norm"] for entry in each.state.log_history if "loss" in entry] for each in found]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert min(norms[0]) > 1e-3
    one, other = adapter(tmp_path / "ours"), adapter(tmp_path / "hosts")
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_weights(root, tmp_path, train):
    """Also in the second epoch: a step has 2 of 6 prompts."""
    output = tmp_path / "out"
    made = config(root, output, conversations(6), block={**with_oracle(root), "rto_beta2": 0.1}, num_epochs=3,
                  max_steps=5, save_strategy="steps", save_steps=4)  # fmt: skip
    train(made)
    whole = adapter(output)
    train({**made, "resume_from_checkpoint": str(output / "checkpoint-4")})
    for name, weight in adapter(output).items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=0)


def test_the_reference_of_a_run_that_continues_an_adapter_is_its_start(root, tmp_path, train):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    first, output = tmp_path / "first", tmp_path / "out"
    options = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(root / "policy"), options).save_pretrained(first)
    block = {"judge": "policy", "expected_column": None, "rto_beta1": 0, "rto_beta2": 0.1}
    made = config(root, output, conversations(), block=block, lora_model_dir=str(first))
    trainer = train(made)
    one, other = trainer.state.log_history[:2]
    assert one["rewards/judge/std"] > 0  # the judge is the adapter against the model below it
    assert abs(one["kl"]) < 1e-6 < abs(other["kl"])
    weights, start = adapter(output), adapter(first)
    assert 1e-4 < max((weights[name] - value).abs().max() for name, value in start.items()) < 0.01  # not created anew


def test_prompts_have_the_tokens_of_the_other_stages(prompts, prepared):
    rows = axo.messages(tiny.pairs(4))
    rows[1]["messages"] = [{"role": "system", "content": "Be brief."}, *rows[1]["messages"]]
    rows[2]["messages"] = [
        *rows[2]["messages"], {"role": "assistant", "content": "Which one?"}, {"role": "user", "content": "That one."}
    ]  # fmt: skip
    pairs, _ = prepared(rows, {"token_scorer": "none", "objective": "minor_dpo"})
    before = [
        [token for token, label in zip(row["chosen_input_ids"], row["chosen_labels"], strict=True) if label == -100]
        for row in pairs.train_dataset
    ]
    answered = [{**row, "expected": ANSWERS} for row in rows]
    found = prompts(answered).meta.train_dataset
    assert found[PROMPT] == before
    rest = [json.loads(row) for row in found[ROW]]
    assert [row["system"] for row in rest] == ["", "Be brief.", "", ""]
    assert [turn["role"] for turn in rest[2]["messages"]] == ["user", "assistant", "user"]
    assert all(row["expected"] == ANSWERS for row in rest)
    whole = [{"messages": [*row["messages"], row["chosen"]], "expected": ANSWERS} for row in rows]
    assert prompts(whole).meta.train_dataset[PROMPT] == before
    entry = {"field_chosen": "better"}  # which the host's schema of GRPO drops
    both = [
        {"expected": ANSWERS, "better": [*row["messages"], row["chosen"]],
         "rejected": [*row["messages"], row["rejected"]]} for row in rows
    ]  # fmt: skip
    assert prompts(both, kind="chat_template.argilla_chat", entry=entry).meta.train_dataset[PROMPT] == before


def test_functions_for_grpo_give_messages_or_text(prompts, words, functions):
    rows = conversations(2)
    messages = prompts(rows, kind="grpo_functions.prompts").meta.train_dataset
    asked = [row["messages"][0]["content"] for row in rows]
    assert [words.decode(ids) for ids in messages[PROMPT]] == [
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in asked
    ]
    texts = prompts(rows, kind="grpo_functions.texts").meta.train_dataset
    assert [words.decode(ids) for ids in texts[PROMPT]] == asked


def test_rows_that_give_no_prompt_are_left_out_and_counted(prompts, tmp_path):
    rows = conversations(4)
    rows += [rows[0], {**rows[1], "expected": []}, {**rows[1], "messages": [{"role": "assistant", "content": "a"}]}]
    rows += [{**rows[1], "messages": [{"role": "user", "content": "long " * 600}]}]
    assert len(prompts(rows).meta.train_dataset) == 4
    *_, last = (tmp_path / "out" / "sepo_log.jsonl").read_text().splitlines()
    counted = json.loads(last)["rows"]["train"]
    assert (counted["given"], counted["used"]) == (8, 4)
    assert {loss["reason"]: loss["rows"] for loss in counted["losses"]} == {
        "an earlier row has the same prompt": 1,
        "expected (expected_column) is empty": 1,
        "the conversation has no turn before its response": 1,
        "prompt and rto_max_new_tokens (6) exceed sequence_len (512)": 1,
    }
    with pytest.raises(SepoError, match=r"train: in 1 rows prompt and rto_max_new_tokens \(6\) exceed"):
        prompts(rows, excess_length_strategy="raise")


ENDS = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "pad_token": "<|im_start|>"}
"""With another eos than the token by which ChatML ends a turn."""


def test_a_response_ends_with_the_end_of_turn_of_the_template(prompts, words):
    end, other = words.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert prompts(conversations(2)).stop_ids == (end,)
    assert prompts(conversations(2), special_tokens=ENDS).stop_ids == (end, other)


def test_full_training_with_an_evaluation_loads_one_reference(root, tmp_path, train, losses, words, monkeypatch):
    """With a reward model as the judge; and responses end with the token of the chat template, or with eos."""
    import axolotl.train as host

    output = tmp_path / "out"
    block = {**FREE, "rto_beta2": 0.1, "judge": "reward_model", "expected_column": None,
             "judge_model": str(rewarded.save(tmp_path / "judge"))}  # fmt: skip
    made = config(root, output, conversations(), block=block, adapter=None,
                  val_set_size=0.25, eval_steps=2, eval_batch_size=4, special_tokens=ENDS)  # fmt: skip
    loaded = []
    monkeypatch.setattr(host, "ModelLoader", lambda *args, load=host.ModelLoader, **more: loaded.append(1) or load(
        *args, **more))  # fmt: skip
    trainer = train({name: value for name, value in made.items() if not name.startswith("lora_")})
    assert len(loaded) == 1
    assert trainer.ref_model is not None
    assert not any(parameter.requires_grad for parameter in trainer.ref_model.parameters())
    assert len(losses(trainer)) == 2
    *_, evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated["eval_rewards/judge/std"] > 0
    assert evaluated["eval_kl"] != 0

    end, other, pad = words.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<|im_start|>"])
    assert trainer.generation_config.eos_token_id == [end, other]
    assert trainer._tokenizer.eos_token_id == end  # by which TRL counts truncated responses
    assert trainer.processing_class.eos_token_id == other
    trainer.model.generate = lambda input_ids, **options: torch.cat(
        [input_ids, torch.tensor([[7, end, pad], [7, 8, other]])], dim=1
    )
    _, completions, *_ = trainer._generate([[5, 6], [5]])
    assert completions == [[7, end], [7, 8, other]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sepo": {**FREE}}, r"judge is missing; set it to one of exact, "),
        ({"sepo": {**JUDGE}}, r"no oracle is named, and stage rto with rto_beta1: 0.05 needs one"),
        ({"sepo": {**JUDGE, "rto_beta3": 1}}, r"unknown key 'rto_beta3'. Did you mean"),
        ({"sepo": {**JUDGE, **FREE, "rto_samples": 8}},
         r"sepo.rto_samples is 8 and trl.num_generations is 4, but they have the same meaning"),
        ({"sepo": {**JUDGE, **FREE, "select_ratio": 0.3}}, r"select_ratio is set, but token_scorer is none"),
        ({"sepo": {**JUDGE, **FREE, "stage": "treg"}}, r"rl is rto and sepo.stage is treg; remove one of them"),
        ({"rl": "dpo", "sepo": {"stage": "rto"}}, r"sepo.stage is rto and rl is dpo, expected rl: rto, or rl: grpo"),
        ({"trl": {"num_generations": 3}}, r"\(4 x 2\) is 8, expected a multiple of rto_samples \(3\)"),
        ({"trl": {"reward_funcs": ["a.b"]}}, r"trl.reward_funcs is set, but the judge gives the rewards; set judge"),
        ({"trl": {"use_liger_loss": True}}, r"trl.use_liger_loss is set, but it replaces the loss"),
        ({"trl": {"mask_truncated_completions": True}}, r"trl.mask_truncated_completions is set, but stage rto does"),
        ({"trl": {"loss_type": "cispo"}}, r"trl.loss_type is 'cispo', expected one of dapo, grpo, bnpo, dr_grpo"),
        ({"dpo_beta": 0.1}, r"dpo_beta is set, but it belongs to rl: dpo"),
        ({"excess_length_strategy": "truncate"}, r"a prompt without its end has no question to respond to"),
        ({"trainer_cls": "sepo.hosts.axolotl.trainer.PreferenceTrainer"}, r"but the stage sets the trainer; remove it"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_loaded(root, tmp_path, changes, message):
    from sepo.hosts.axolotl.online.config import resolve_rto_config

    made = config(root, tmp_path / "out", conversations())
    with pytest.raises(SepoError, match=message):
        resolve_rto_config({**made, **changes})


def test_fewer_groups_than_processes_are_refused(root, tmp_path, monkeypatch):
    from sepo.hosts.axolotl.online.config import resolve_rto_config

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SepoError, match=r"is 8, expected at least rto_samples x processes \(4 x 3\), as in rl: grpo"):
        resolve_rto_config(config(root, tmp_path / "out", conversations()))


def test_keys_of_the_block_trl_have_the_meaning_of_the_blocks_own(root, tmp_path):
    from sepo.hosts.axolotl.online.config import resolve_rto_config

    trl = {"num_generations": 2, "max_completion_length": 9, "temperature": 0.7, "top_p": 0.9, "epsilon": 0.1,
           "num_iterations": 2, "loss_type": "grpo", "scale_rewards": True, "beta": 0.2, "use_vllm": True}  # fmt: skip
    own = {"rto_samples": 2, "rto_max_new_tokens": 9, "rto_temperature": 0.7, "rto_top_p": 0.9, "rto_clip": 0.1,
           "rto_iterations": 2, "rto_loss": "grpo", "rto_scale": "group", "rto_kl_beta": 0.2}  # fmt: skip
    made = config(root, tmp_path / "out", conversations())
    one = resolve_rto_config({**made, "trl": trl})
    other = resolve_rto_config({**made, "trl": {"use_vllm": True}, "sepo": {**JUDGE, **FREE, **own}})
    assert one.settings == other.settings
    assert one.changes["trl"] == other.changes["trl"] == {**trl, "scale_rewards": "group", "beta": 0.0}
    assert one.changes["rl"] == "grpo"


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (conversations(1), {}, r"train has 1 prompts, but one batch of responses is to 2 \(8 responses, rto_samples 4"),
        (conversations(8), {"val_set_size": 0.25, "eval_batch_size": 2}, r"eval_batch_size is 2 in 1 processes"),
        (conversations(2), {"kind": "alpaca.load"}, r"a data set has the type alpaca.load, expected chat_template.def"),
        ([{"messages": row["messages"]} for row in conversations(2)], {}, r"expected_column is expected, but the rows"),
        ([{**row, "expected": {"all": "e"}} for row in conversations(2)], {}, r"expected answer has the field \'all\'"),
        (conversations(2), {"sequence_len": 8}, r"train: no prompt is left: in 2 rows prompt and rto_max_new_tokens"),
        (conversations(2), {"block": dict.fromkeys(("oracle_model", "oracle_base_model"), "base")},
         r"the oracle and its base are the same model"),
    ],
)  # fmt: skip
def test_data_and_models_are_refused_before_the_policy_is_loaded(root, prompts, rows, changes, message):
    if "block" in changes:
        changes = {"block": {name: str(root / model) for name, model in changes["block"].items()}}
    with pytest.raises(SepoError, match=message):
        prompts(rows, **changes)
