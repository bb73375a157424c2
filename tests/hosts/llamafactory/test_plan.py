"""`sepo plan`: the account of a recipe, whether it fits, and changes that make it fit; for all example recipes, too."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from sepo.cli import main
from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan import out_of_memory, weights
from sepo.hosts.llamafactory.plan import run as plans
from sepo.hosts.llamafactory.plan.account import account_for
from sepo.hosts.llamafactory.plan.policy import optimizer_bytes
from sepo.hosts.llamafactory.plan.recipe import planned_run
from sepo.hosts.llamafactory.plan.rto import planned_rto, rto_account
from sepo.recipe.model_specs import ModelSpec
from tests.support.packages import WITH_RECIPES, on_path, write_example
from tests.support.recipes import BIN, run, sepo_recipe, write
from tests.support.shapes import SHAPES

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[3]
GIB = 2**30


PARAMETERS = {"llama-2-7b": 6.738e9, "llama-2-13b": 13.016e9, "llama-3-8b": 8.030e9, "gemma-2-9b": 9.242e9,
              "qwen3-30b-a3b": 30.532e9}  # fmt: skip


@pytest.fixture
def shapes(monkeypatch):
    def config(spec, *, key, access):
        known = [shape for word, shape in SHAPES.items() if word in spec.model.lower()]
        return (known[0] if known else SHAPES["qwen3-0.6b"])()

    monkeypatch.setattr(weights, "model_config", config)


def account(path, *, on_gpu=True, **changes):
    recipe = {**yaml.safe_load((ROOT / "yaml_examples" / path).read_text()), **changes}
    return account_for(planned_run(recipe), on_gpu=on_gpu)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name, shapes):
    run_ = planned_run({"model_name_or_path": name, "stage": "minor_dpo", "bf16": True, "cutoff_len": 64,
                        "per_device_train_batch_size": 1})  # fmt: skip
    assert account_for(run_, on_gpu=True).parameters == pytest.approx(PARAMETERS[name], rel=1e-3)


def examples():
    from sepo.hosts.llamafactory.chain_steps import SECTIONS, plan_steps
    from sepo.hosts.llamafactory.compared_oracle import with_oracle
    from sepo.recipe.comparison import SECTIONS as VARIANTS
    from sepo.recipe.comparison import read_comparison
    from sepo.recipe.stage_names import HOST_STAGES

    for path in sorted(p for p in (ROOT / "yaml_examples").rglob("*.yaml") if p.parent.name != "axolotl"):
        recipe = yaml.safe_load(path.read_text())
        recipes = {path.stem: plan_steps(recipe)[-1].recipe if set(SECTIONS) & set(recipe) else recipe}
        if set(VARIANTS) & set(recipe):
            comparison, oracle = with_oracle(read_comparison(recipe))
            runs = {run.variant.name: run.recipe for run in comparison.runs()}
            steps = {} if oracle is None else {step.name: step.recipe for step in oracle.steps[1:]}
            recipes = {f"{path.stem}-{name}": one for name, one in {**steps, **runs}.items()}
        for name, one in recipes.items():
            if one["stage"] not in HOST_STAGES:  # steps of a chain, and variants, with the host's own stages
                yield pytest.param(path, one, id=name)


@pytest.mark.parametrize(("path", "recipe"), examples())
def test_every_recipe_is_planned_and_those_for_a_card_fit_it(path, recipe, shapes, tmp_path):
    packaged = path.parent in WITH_RECIPES
    with on_path(write_example(tmp_path, path.parent)) if packaged else contextlib.nullcontext():
        planned = (
            rto_account(planned_rto(recipe), on_gpu=True)
            if recipe["stage"] == "rto"
            else account_for(planned_run(recipe), on_gpu=True)
        )
    assert planned.peak.total > GIB / 2
    size = path.stem.rsplit("_", 1)[-1]
    if size.endswith("gb"):
        assert planned.peak.total < int(size[:-2]) * GIB
        assert f"--gpu {size[:-2]}GiB" in path.read_text()


def test_qlora_of_seven_and_thirteen_billion_is_what_four_bits_weigh(shapes):
    phases = {phase.name: phase.items for phase in account("sepo_qlora.yaml").phases}
    # 12.69 B weights in layers at 4.127 bits, 0.33 B in embedding and head at 16
    assert phases["training"]["policy"] == pytest.approx((12.6878e9 * 4.127 / 8) + 0.3277e9 * 2, rel=2e-3)
    assert set(phases) == {"scoring by the oracle", "training"}
    assert "reference" not in phases["training"]


def test_the_loss_of_routers_is_counted(shapes):
    def activations(weight):
        return account("moe_sepo_lora.yaml", moe_aux_loss_coef=weight).phases[-1].items["activations, head"]

    tokens = 2 * 2048 - 1  # a prompt of one token and two responses
    probabilities = 48 * tokens * 128 * 4  # of all layers, in float32
    assert activations(0.001) - activations(None) > probabilities


def test_the_loss_of_routers_needs_experts(shapes):
    with pytest.raises(SepoError, match="a model of the type qwen3 has no experts, so it has no load-balancing loss"):
        account("sepo_lora.yaml", moe_aux_loss_coef=0.01)


def test_a_reference_is_in_memory_only_if_it_runs_in_training(shapes):
    def items(**changes):
        changes |= {"cutoff_len": 256, "per_device_train_batch_size": 1}
        return {p.name: p.items for p in account("selective_dpo_lora.yaml", **changes).phases}

    live, before = items(), items(ref_precompute=True)
    assert live["training"]["reference"] == pytest.approx(1.5437e9 * 2, rel=1e-2)
    assert "reference" not in before["training"]
    assert before["reference, before training"]["scoring model"] == live["training"]["reference"]
    own_start = items(ref_model=None)
    assert "reference" not in own_start["training"]  # the policy without its adapter
    full = items(ref_model=None, finetuning_type="full")
    assert full["training"]["reference"] == pytest.approx(0.494e9 * 2, rel=1e-2)


def test_all_weights_in_pure_bfloat16_are_half_of_mixed_precision(shapes):
    recipe = {"model_name_or_path": "qwen2.5-0.5b", "stage": "minor_dpo", "ref_precompute": True, "cutoff_len": 64,
              "finetuning_type": "full", "per_device_train_batch_size": 1}  # fmt: skip
    mixed, pure = (account_for(planned_run({**recipe, key: True}), on_gpu=True) for key in ("bf16", "pure_bf16"))
    for item in ("trained weights", "gradients"):
        assert mixed.phases[-1].items[item] == 2 * pure.phases[-1].items[item] == pytest.approx(4 * 0.494e9, rel=1e-2)
    assert 0 < pure.phases[-1].items["activations, head"] <= mixed.phases[-1].items["activations, head"]


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.3),
        ({"chosen_select_ratio": 0.5, "rejected_select_ratio": 0.1}, 0.3),
        ({"pref_ftx": 0.1}, 0.65),
        ({"treg_alpha": 0.25}, 0.3),
        ({"token_scorer": "confidence"}, 1.0),
        ({"token_scorer": "none", "objective": "simpo"}, 1.0),
    ],
)
def test_the_head_is_planned_for_the_tokens_that_a_step_reads(shapes, changes, share):
    recipe = {"model_name_or_path": "qwen2.5-0.5b", "stage": "sepo", "token_scorer": "random", "bf16": True,
              "cutoff_len": 101, "per_device_train_batch_size": 2, **changes}  # fmt: skip
    assert account_for(planned_run(recipe), on_gpu=True).row.selected == round(400 * share)


def test_the_transport_between_long_responses_is_planned(shapes):
    """Its matrices are quadratic in the responses' lengths; for short ones they fit beside what is there anyway."""

    def making(objective, cutoff):
        recipe = {"model_name_or_path": "qwen2.5-0.5b", "stage": "minor_dpo", "bf16": True, "ref_precompute": True,
                  "cutoff_len": cutoff, "per_device_train_batch_size": 1, "objective": objective}  # fmt: skip
        return account_for(planned_run(recipe), on_gpu=True).phases[-1].items["activations, head"]

    assert making("otpo", 512) == making("dpo", 512)
    assert making("otpo", 8192) - making("dpo", 8192) > 8191**2 * 4


def test_kept_activations_are_counted_if_set_and_noted_if_automatic(shapes):
    def planned(**changes):
        return account("sepo_lora.yaml", cutoff_len=512, per_device_train_batch_size=1, **changes)

    automatic, least, set_ = planned(), planned(kept_activations_mb=0), planned(kept_activations_mb=250)
    items = [one.phases[-1].items for one in (automatic, least, set_)]
    assert [each.get("kept activations") for each in items] == [None, 0, 250e6]
    assert len({each["activations, head"] for each in items}) == 1
    noted = [[note for note in one.notes if "(kept_activations_mb)" in note] for one in (automatic, least, set_)]
    assert [len(notes) for notes in noted] == [1, 0, 0]
    without = planned(disable_gradient_checkpointing=True, kept_activations_mb=250)
    assert "kept activations" not in without.phases[-1].items


def test_engines_shard_what_they_shard(shapes, tmp_path):
    def training(stage, processes):
        config = tmp_path / f"z{stage}.json"
        config.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        recipe = {"model_name_or_path": "qwen2.5-0.5b", "stage": "sepo", "token_scorer": "random", "bf16": True,
                  "finetuning_type": "full", "cutoff_len": 64, "per_device_train_batch_size": 1,
                  "deepspeed": str(config)}  # fmt: skip
        (phase,) = account_for(planned_run(recipe, processes=processes), on_gpu=True).phases
        return phase.items

    one, two, three = (training(stage, 4) for stage in (1, 2, 3))
    optimizer = "optimizer (adamw_torch)"
    assert one[optimizer] == pytest.approx(0.494e9 * 8 / 4, rel=1e-2)
    assert one["gradients"] == 4 * two["gradients"]
    assert two["trained weights"] == 4 * three["trained weights"]
    assert three["gathered layers"] > 0


def test_a_run_that_does_not_fit_gets_changes_that_make_it_fit(world, tmp_path, capsys):
    recipe = sepo_recipe(world, tmp_path / "out", cutoff_len=1024, per_device_train_batch_size=8)
    path = write(recipe, tmp_path / "recipe.yaml")
    assert main(["plan", str(path), "--gpu", "1GiB"]) == 0
    fits = capsys.readouterr().out
    assert "fits a device (1.00 GiB)" in fits
    best = min(change["peak"] for change in plans.plan(path, gpu="1MiB")["changes"])
    tight = f"{best / 2**20 + 1:.1f}MiB"
    capsys.readouterr()
    result = plans.plan(path, gpu=tight, output=tmp_path / "plan.json")
    printed = capsys.readouterr().out
    assert "does not fit a device" in printed
    assert result == json.loads((tmp_path / "plan.json").read_text())
    assert not result["fits"]
    savings = {name for change in result["changes"] for name in change["keys"]}
    assert {"per_device_train_batch_size", "cutoff_len"} <= savings
    for change in result["changes"]:
        again = plans.plan(path, [f"{name}={value}" for name, value in change["keys"].items()], gpu="1GiB")
        assert again["peak"]["bytes"] == pytest.approx(change["peak"])
        assert result["peak"]["bytes"] - change["peak"] == pytest.approx(change["saving"])
    words = [f"{name}={value}" for name, value in result["fits_with"]["keys"].items()]
    assert plans.plan(path, words, gpu=tight)["fits"]


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["--gpu", "many"], {}, "--gpu is 'many'"),
        (["--gpu", "24"], {}, "a size such as 24GiB"),
        (["--tokens", "0"], {}, "--tokens is 0"),
        ([], {"stage": "dpo"}, "stage is dpo"),
        ([], {"stage": "seppo"}, "Did you mean 'sepo'"),
        (
            [],
            {"model_name_or_path": "no-such/model"},
            "'no-such/model' is neither a local directory",
        ),
        ([], {"deepspeed": "nowhere.json"}, "deepspeed: 'nowhere.json' cannot be read"),
        ([], {"select_ratio": 3}, "select_ratio"),
        ([], {"oracle": {"kind": "reversed"}}, "section 'oracle' is one of sepo pipeline; for the memory of its steps"),
    ],
)
def test_refusals_are_one_line(words, changes, message, world, tmp_path, capsys):
    path = write(sepo_recipe(world, tmp_path / "out", **changes), tmp_path / "recipe.yaml")
    assert main(["plan", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_models_that_cannot_be_planned_are_refused_in_one_line(world, tmp_path, capsys):
    config = transformers.OPTConfig(hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4)
    config.save_pretrained(tmp_path / "opt")
    path = write(sepo_recipe(world, tmp_path / "out", model_name_or_path=str(tmp_path / "opt")), tmp_path / "r.yaml")
    assert main(["plan", str(path)]) == 2
    assert "the memory of '" in capsys.readouterr().err
    assert main(["plan", str(path), "finetuning_type=oft"]) == 2
    assert "finetuning_type is oft" in capsys.readouterr().err


def test_fsdp_of_accelerates_own_configuration_is_used(world, tmp_path, monkeypatch):
    recipe = sepo_recipe(world, tmp_path / "out")
    assert planned_run(recipe, processes=2).engine.zero == 0
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert planned_run(recipe, processes=2).engine.zero == 3


def test_weights_that_are_quantized_in_the_checkpoint(world, tmp_path):
    values = json.loads((world / "policy" / "config.json").read_text())
    folder = tmp_path / "gptq"
    folder.mkdir()
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(values))
    run_, policy = planned_run(sepo_recipe(world, tmp_path / "out")), str(world / "policy")
    specs = (ModelSpec(str(folder)), ModelSpec(policy), ModelSpec(policy, (), 6))
    packed, plain, six = (weights.model_weights(run_, spec, key="any").counted.total for spec in specs)
    assert packed < six < plain


@pytest.mark.parametrize(
    ("name", "bits", "noted"),
    [("adamw_torch", 8, ""), ("paged_adamw_8bit", 2, "may move"), ("sgd", 0, ""), ("muon2", 8, "counted as AdamW")],
)
def test_optimizers(name, bits, noted):
    notes = []
    assert optimizer_bytes(name, notes) == bits
    assert noted in " ".join(notes)


def test_a_run_that_cannot_fit_logs_a_warning_and_trains(world, tmp_path, monkeypatch):
    recipe = sepo_recipe(world, tmp_path / "out")
    assert out_of_memory.warn_if_too_large(recipe) is None
    monkeypatch.setattr(out_of_memory, "device_memory", lambda *, on_cpu: (2.0**20, "this machine's free memory"))
    warning = out_of_memory.warn_if_too_large(recipe)
    assert "does not fit this machine's free memory (1.0 MiB)" in warning
    assert out_of_memory.warn_if_too_large({**recipe, "stage": "nothing"}) is None


def test_the_out_of_memory_error_has_the_largest_savings(world, tmp_path, monkeypatch):
    recipe = sepo_recipe(world, tmp_path / "out", per_device_train_batch_size=8, cutoff_len=1024)

    def exhausted(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    with pytest.raises(SepoError) as error:
        out_of_memory.train_with_plan(exhausted, {"args": recipe})
    assert "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB." in str(error.value)
    assert str(error.value).count("saves about") == 3


def test_the_command_in_a_subprocess(world, tmp_path):
    path = write(sepo_recipe(world, tmp_path / "out"), tmp_path / "recipe.yaml")
    done = run([BIN / "sepo", "plan", path, "--gpu", "24GiB", "--timing"], cwd=tmp_path, fresh=True)
    assert "fits a device (24.00 GiB)" in done.stdout
    assert "scoring by the oracle" in done.stdout
    total, imports, work = done.stdout.splitlines()[-3:]
    assert total.startswith("timing: ")
    assert " torch " in imports
    assert " account " in work


_MODULES = """
import sys
from sepo.cli import main
status = main(sys.argv[1:])
print(*sorted(sys.modules))
sys.exit(status)
"""


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_plan_imports_what_it_needs(world, tmp_path, kind):
    """No recipe is planned with data sets, trainers, the board, quantized layers or an engine."""
    path = write(sepo_recipe(world, tmp_path / "out", finetuning_type=kind), tmp_path / "recipe.yaml")
    done = run([sys.executable, "-c", _MODULES, "plan", path, "--gpu", "1MiB"], cwd=tmp_path, fresh=True)
    assert "does not fit a device" in done.stdout
    imported = set(done.stdout.splitlines()[-1].split())
    assert "torch" in imported
    absent = {"bitsandbytes", "trl", "gradio", "matplotlib", "deepspeed", "torchaudio", "llamafactory.data",
              "llamafactory.model", "llamafactory.train", "llamafactory.webui"}  # fmt: skip
    assert not absent & imported


@pytest.mark.parametrize(
    ("keys", "like"),
    [
        ({"objective": "confpo"}, {"objective": "simpo"}),
        ({"objective": "d2po"}, {"objective": "dpo"}),
        ({"objective": "ld_dpo", "ld_alpha": 0}, {"objective": "dpo"}),
        ({"objective": "sampo"}, {"objective": "dpo"}),
        ({"objective": "critical_dpo"}, {"objective": "dpo"}),
        ({"objective": {"dpo": 0.8, "orpo": 0.2}}, {"objective": "dpo"}),
        ({"objective": {"simpo": 0.8, "orpo": 0.2}}, {"objective": "simpo"}),
    ],
)
def test_the_step_of_a_weighted_method_or_a_sum_needs_what_that_over_all_tokens_does(shapes, keys, like):
    """Tokens without weight, and shares that depend on the pair, save memory only in batches that have them."""
    common = {"model_name_or_path": "llama-3-8b", "stage": "minor_dpo", "bf16": True, "cutoff_len": 512,
              "per_device_train_batch_size": 2, "finetuning_type": "lora"}  # fmt: skip
    found, expected = (account_for(planned_run({**common, **more}), on_gpu=True) for more in (keys, like))
    assert found.phases[-1] == expected.phases[-1]
