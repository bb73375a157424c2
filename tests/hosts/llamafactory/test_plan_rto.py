"""`sepo plan` for stage `rto`: memory of sampling, scoring and training against real steps, and whether they fit."""

import contextlib
import json
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan.recipe import planned_run
from sepo.hosts.llamafactory.plan.report import peak_in_words
from sepo.hosts.llamafactory.plan.rto import planned_rto, rto_account
from sepo.memory.live import LiveBytes, tensors_of
from tests.support import tiny
from tests.support.recipes import sepo_recipe, write
from tests.support.shapes import SHAPES

pytestmark = pytest.mark.host

GIB = 2**30
RECIPE = {
    "stage": "rto", "model_name_or_path": "qwen2.5-1.5b", "oracle_model": "qwen2.5-0.5b",
    "oracle_base_model": "qwen2.5-0.5b", "oracle_model_adapters": "dpo", "judge": "exact", "expected_column": "answer",
    "bf16": True, "cutoff_len": 256, "rto_max_new_tokens": 128, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
}  # fmt: skip
NO_ORACLE = {"rto_beta1": 0, "oracle_model": None, "oracle_base_model": None, "oracle_model_adapters": None}


@pytest.fixture
def shapes(monkeypatch):
    from sepo.hosts.llamafactory.plan import weights

    monkeypatch.setattr(weights, "model_config", lambda spec, **_: SHAPES[spec.model]())


def phases(*, processes=1, **changes):
    recipe = {name: value for name, value in {**RECIPE, **changes}.items() if value is not None}
    return {
        phase.name: phase.items for phase in rto_account(planned_rto(recipe, processes=processes), on_gpu=True).phases
    }


def test_all_models_are_in_memory_in_every_phase(shapes):
    found = phases(judge="reward_model", judge_model="tinyllama", expected_column=None)
    assert list(found) == ["sampling", "scoring, judging", "training"]
    for items in found.values():
        assert items["policy"] == pytest.approx(1.5437e9 * 2, rel=1e-2)
        assert items["oracle"] == pytest.approx(0.494e9 * 2, rel=1e-2)  # its base is the same model without adapters
        assert items["judge: reward model"] == pytest.approx(2 * (1.1e9 - 2048 * 32000), rel=1e-2)
        assert items["optimizer (adamw_torch)"] > 0
    assert "gradients" in found["training"]
    assert "gradients" not in found["sampling"]
    assert "keys and values" not in found["training"]


def test_two_models_and_a_reference_count_twice(shapes):
    items = phases(oracle_base_model="tinyllama", ref_model="qwen2.5-0.5b")["sampling"]
    assert items["oracle's base"] > items["oracle"] == items["reference"] > 0
    assert "reference" not in phases()["training"]  # the policy without its adapter
    full = phases(finetuning_type="full")["training"]
    assert full["reference"] == pytest.approx(1.5437e9 * 2, rel=1e-2)
    assert "oracle" not in phases(**NO_ORACLE)["sampling"]
    assert "reference" not in phases(rto_beta2=0, finetuning_type="full")["training"]


def test_all_responses_of_a_step_are_sampled_at_once(shapes):
    cache = 28 * 2 * 2 * 128 * 2 * 16 * 383  # layers, keys and values, heads, width, bytes, responses, tokens
    once, twice = (phases(gradient_accumulation_steps=steps) for steps in (4, 8))
    assert once["sampling"]["keys and values"] == pytest.approx(cache, rel=0.02)
    assert twice["sampling"]["keys and values"] == pytest.approx(2 * cache, rel=0.02)
    assert twice["training"] == once["training"]
    evaluated = phases(do_eval=True, val_size=64, per_device_eval_batch_size=64)
    assert evaluated["sampling"]["keys and values"] == pytest.approx(4 * cache, rel=0.02)


def test_the_head_runs_on_selected_tokens_in_training_alone(shapes):
    def run(**changes):
        recipe = {**RECIPE, "per_device_train_batch_size": 16, **changes}
        account = rto_account(planned_rto(recipe), on_gpu=True)
        return account.batch.selected, {phase.name: phase.items["activations, head"] for phase in account.phases[1:]}

    (all_, every), (some, selected) = run(), run(token_scorer="entropy", select_ratio=0.25)
    assert (all_, some) == (16 * 128, 16 * 32)
    assert selected["training"] < every["training"]
    assert selected["scoring, judging"] == every["scoring, judging"]


def test_a_second_step_on_the_same_responses_needs_all_logits(shapes):
    one, two = (phases(rto_iterations=count)["scoring, judging"]["activations, head"] for count in (1, 2))
    assert two > one
    assert two > 2 * 4 * 128 * 151936 * 4  # twice in float32


def test_zero_3_gathers_all_weights_to_sample(shapes, tmp_path):
    config = tmp_path / "z3.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    found = phases(processes=4, deepspeed=str(config))
    assert found["sampling"]["gathered weights"] == pytest.approx(1.5437e9 * 2, rel=0.02)
    assert found["training"]["policy"] == pytest.approx(1.5437e9 * 2 / 4, rel=1e-2)
    assert found["training"]["gathered layers"] > 0


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return bytes of weights and the peaks of the phases of a real step of the trainer, in float32."""
    from trl import GRPOTrainer

    from sepo.forward.sequences import OracleScorer, ScoringModel
    from sepo.online.grpo_step import RtoStep
    from sepo.recipe.rto import RtoMethod, RtoSelection
    from tests.support.online import trainer_of

    class Sampling(RtoStep, GRPOTrainer):
        stop_ids = (2,)

    def model():
        return transformers.LlamaForCausalLM(tiny.config(400)).float()

    torch.manual_seed(0)
    policy = peft.get_peft_model(model(), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    oracle, base = (ScoringModel(model().eval(), contextlib.nullcontext) for _ in range(2))
    rto = RtoMethod(samples=4, max_new_tokens=24, temperature=0.7, select=RtoSelection("entropy", 0.25))
    trainer = trainer_of(
        Sampling, tmp_path_factory.mktemp("real"), model=policy.train(), rto=rto, max_completion_length=24,
        oracle=OracleScorer(oracle=oracle, base=base, batch_tokens=400), temperature=0.7,
        generation_kwargs={"min_new_tokens": 24, "eos_token_id": [2]},
    )  # fmt: skip
    row = dict(trainer.train_dataset[0])
    rows = [{**row, "prompt": [5 + place for place in range(40 - number % 2)]} for number in range(8)]
    held = [*tensors_of(policy), *tensors_of(oracle.model), *tensors_of(base.model)]
    peaks = {}

    def measured(name, function):
        def run(*args, **kwargs):
            live = LiveBytes()
            live.leave_out([*held, *(weight.grad for weight in policy.parameters() if weight.grad is not None)])
            with live:
                found = function(*args, **kwargs)
            peaks[name] = live.peak
            return found

        return run

    policy.generate = measured("sampling", policy.generate)
    trainer._token_values = measured("scoring", trainer._token_values)

    def step():
        inputs = trainer._prepare_inputs(rows)
        trainer.compute_loss(policy, inputs).backward()

    def training(inputs):
        trainer.compute_loss(policy, inputs).backward()

    step()  # gradients exist from here on
    assert trainer._buffered_inputs[1]["completion_ids"].shape == (4, 24)
    policy.gradient_checkpointing_enable({"use_reentrant": True})  # as the host; TRL's default is another one
    policy.enable_input_require_grads()
    measured("training", training)(trainer._buffered_inputs[1])
    gradients = sum(weight.grad.nbytes for weight in policy.parameters() if weight.grad is not None)
    return SimpleNamespace(peaks=peaks, weights=sum(map(_bytes, tensors_of(policy))), gradients=gradients,
                           oracle=sum(map(_bytes, oracle.model.parameters())))  # fmt: skip


def _bytes(tensor):
    return tensor.nbytes


def test_the_account_is_that_of_a_real_step(real, monkeypatch):
    from sepo.hosts.llamafactory.plan import weights

    monkeypatch.setattr(weights, "model_config", lambda spec, **_: tiny.config(400))
    recipe = {
        **RECIPE, "bf16": False, "use_cpu": True, "oracle_model_adapters": None, "oracle_model": "other",
        "gradient_accumulation_steps": 2, "rto_samples": 4, "rto_max_new_tokens": 24, "rto_temperature": 0.7,
        "cutoff_len": 40, "score_batch_tokens": 400, "lora_rank": 4, "token_scorer": "entropy", "select_ratio": 0.25,
    }  # fmt: skip
    loading, sampling, scoring, training = (
        phase.items for phase in rto_account(planned_rto(recipe), on_gpu=False).phases
    )
    assert sampling["keys and values"] + sampling["activations, logits"] == pytest.approx(
        real.peaks["sampling"], rel=0.1
    )
    assert scoring["activations, head"] == pytest.approx(real.peaks["scoring"], rel=0.1)
    assert training["activations, head"] == pytest.approx(real.peaks["training"], rel=0.1)
    assert training["policy"] + training["trained weights"] == pytest.approx(real.weights, rel=0.01)
    assert training["gradients"] == real.gradients
    assert training["oracle"] == training["oracle's base"] == real.oracle == loading["oracle"]


def recipe_of(world, tmp_path, **changes):
    keys = {"stage": "rto", "token_scores_dir": None, "judge": "contains", "expected_column": "expected",
            "rto_samples": 4, "rto_max_new_tokens": 64, "cutoff_len": 64, "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2}  # fmt: skip
    return write(sepo_recipe(world, tmp_path / "out", **{**keys, **changes}), tmp_path / "recipe.yaml")


def test_the_command_prints_the_phases_and_what_would_make_them_fit(world, tmp_path, capsys):
    path = recipe_of(world, tmp_path)
    assert main(["plan", str(path), "--gpu", "4GiB", "-o", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    assert "sampled at once: 16 responses of 64 tokens to prompts of 64" in printed
    assert "largest batch: 8 responses at a time, 1,024 tokens through the layers, 512 through the head" in printed
    assert "fits a device (4.00 GiB)" in printed
    assert "judge contains loads no model" in printed
    values = json.loads((tmp_path / "plan.json").read_text())
    assert [phase["name"] for phase in values["phases"]] == ["loading", "sampling", "scoring, judging", "training"]
    assert (values["sampled"], values["tokens"], values["changes"]) == (16, 1024, [])
    less = f"{0.97 * values['peak']['bytes'] / 2**20:.2f}MiB"
    assert main(["plan", str(path), "--gpu", less, "-o", str(tmp_path / "plan.json")]) == 0
    assert "does not fit a device" in capsys.readouterr().out
    values = json.loads((tmp_path / "plan.json").read_text())
    assert {"per_device_train_batch_size"} <= {name for change in values["changes"] for name in change["keys"]}
    for change in values["changes"]:
        words = [f"{name}={value}" for name, value in change["keys"].items()]
        assert main(["plan", str(path), *words, "--gpu", "4GiB", "-o", str(tmp_path / "changed.json")]) == 0
        assert json.loads((tmp_path / "changed.json").read_text())["peak"]["bytes"] == change["peak"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "5"], "--tokens is for batches of pairs"),
        (["rto_samples=3"], "an optimizer step has 16 responses"),
        (["--processes", "2", "rto_samples=64"], "x 2 processes), expected a multiple of rto_samples (64)"),
        (["judge="], "judge is missing"),
        (["pref_beta=0.1"], "pref_beta is set, but it belongs to the stages that train on pairs"),
        (["model_name_or_path="], "model_name_or_path is missing"),
        (["model_name_or_path=no-such/model"], "'no-such/model' is neither a local directory"),
    ],
)
def test_refusals_are_one_line(world, tmp_path, capsys, words, message):
    assert main(["plan", str(recipe_of(world, tmp_path)), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_among_several_has_its_peak(shapes):
    assert peak_in_words(RECIPE).endswith("iB")
    assert peak_in_words({**RECIPE, "judge": None}) == "-"
    with pytest.raises(SepoError, match="stage is rto"):
        planned_run(RECIPE)  # of a run on pairs
