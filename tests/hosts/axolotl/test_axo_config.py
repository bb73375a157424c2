"""A stage in Axolotl's config: aliases, the block, and refusals with their reasons, before anything is loaded."""

import pytest

from sepo.errors import SepoError
from sepo.hosts.axolotl.block import BLOCK_KEYS
from sepo.hosts.axolotl.config import TRAINER, Resolved, resolve_config
from sepo.objectives import resolve_method
from sepo.recipe.resolve import resolve
from tests.support import axo
from tests.support.packages import WEIGHT_EXAMPLE, on_path, write_example


def given(root, tmp_path, stage="minor_dpo", rl=None, block=None, **more):
    made = axo.config(root, tmp_path / "out", rl=rl or stage, **more)
    return {**made, "sepo": {**axo.block(root, tmp_path / "out", stage), **(block or {})}}


@pytest.mark.parametrize("stage", axo.STAGES)
def test_alias_and_block_resolve_to_the_settings_of_the_other_host(root, tmp_path, stage):
    alias = resolve_config(given(root, tmp_path, stage))
    block = resolve_config(given(root, tmp_path, stage, rl="dpo", block={"stage": stage}, trainer_cls=TRAINER))
    assert alias.settings.as_dict() == block.settings.as_dict()
    assert alias.changes == block.changes
    assert (alias.changes["rl"], alias.changes["trainer_cls"]) == ("dpo", TRAINER)
    recipe = {"stage": stage, "model_name_or_path": str(root / "policy"), **axo.block(root, tmp_path / "out", stage)}
    _, theirs = resolve(recipe, host_keys=("model_name_or_path", "stage"))
    assert alias.settings.as_dict() == theirs.as_dict()


def test_resolution_is_idempotent(root, tmp_path):
    first = given(root, tmp_path, "sepo", block={"select_ratio": 0.5})
    once = resolve_config(first)
    again = resolve_config({**first, **once.changes})
    assert again.settings.as_dict() == once.settings.as_dict()
    assert type(again).from_json(again.as_json()).settings == again.settings


@pytest.mark.parametrize(
    "more",
    [
        {"router_aux_loss_coef": 0.01},
        {"overrides_of_model_config": {"router_aux_loss_coef": 0.01, "output_router_logits": True}},
        {"block": {"moe_aux_loss_coef": 0.01}},
    ],
)
def test_the_weight_of_the_router_loss_has_axolotls_names(root, tmp_path, more):
    resolved = resolve_config(given(root, tmp_path, **more))
    assert resolved.settings.router_loss_weight == 0.01
    assert type(resolved).from_json(resolved.as_json()).settings.router_loss_weight == 0.01
    assert resolve_config(given(root, tmp_path)).settings.router_loss_weight == 0.0


def test_rl_dpo_without_trainer_cls_warns(root, tmp_path, caplog):
    """Without the package such a config would train plain DPO."""
    made = given(root, tmp_path, "minor_dpo", rl="dpo", block={"stage": "minor_dpo"})
    with caplog.at_level("WARNING", logger="sepo"):
        assert resolve_config(made).changes["trainer_cls"] == TRAINER
    (line,) = caplog.messages
    assert "set rl: minor_dpo, or add trainer_cls" in line
    caplog.clear()
    with caplog.at_level("WARNING", logger="sepo"):
        resolve_config({**made, "trainer_cls": TRAINER})
    assert not caplog.messages


@pytest.mark.parametrize("rl", [None, "dpo", "ipo", "orpo", "kto", "grpo"])
def test_a_config_without_a_sepo_stage_is_not_changed(root, tmp_path, rl):
    assert resolve_config(axo.config(root, tmp_path / "out", rl=rl)) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dpo_use_liger_kernel": True}, "dpo_use_liger_kernel is set"),
        ({"dpo_padding_free": True}, "dpo_padding_free is set"),
        ({"precompute_ref_log_probs": True}, "ref_precompute: true in the sepo block"),
        ({"dpo_loss_type": ["ipo"]}, "the key objective sets the loss"),
        ({"dpo_loss_weights": [1.0]}, "dpo_loss_weights is set"),
        ({"dpo_use_weighting": True}, "set objective: wpo"),
        ({"streaming": True}, "a stream has no row numbers"),
        ({"sample_packing": True}, "sample_packing is set, but pairs are not packed"),
        ({"use_eaft": True}, "use_eaft is set, but it replaces the loss of SFT"),
        (
            {"dpo_ld_alpha": 0.5},
            "dpo_ld_alpha is set, but it belongs to token_weight length, and token_weight is none; set objective: "
            "ld_dpo or token_weight: length, or remove it",
        ),
        (
            {"dpo_ld_alpha": 0.5, "block": {"objective": "ld_dpo", "ld_alpha": 0.25}},
            "sepo.ld_alpha is 0.25 and dpo_ld_alpha is 0.5, but they have the same meaning",
        ),
        ({"dpo_ld_alpha": 1.5, "block": {"objective": "ld_dpo"}}, "ld_alpha is 1.5, expected a number in .0, 1."),
        ({"block": {"objective": {"dpo": 0.8, "orppo": 0.2}}}, "objective is 'orppo'.*Did you mean 'orpo'"),
        ({"block": {"objective": {"dpo": "much"}}}, "the factor of dpo in objective is 'much', expected a number"),
        ({"block": {"objective": ["dpo", "orpo"]}}, "objective is .'dpo', 'orpo'., expected the name of an objective"),
        ({"unsloth_lora_mlp": True}, "Unsloth replaces the forward"),
        ({"lora_model_dir": "adapter"}, "merge it first"),
        ({"context_parallel_size": 2}, "needs whole responses"),
        ({"trainer_cls": "somebody.Else"}, "the stage sets the trainer"),
        ({"cut_cross_entropy": True}, "replaces the head's loss"),
        ({"use_ray": True}, "do not support Ray"),
        ({"load_in_4bit": True, "adapter": None}, "quantized weights cannot be trained"),
        ({"rl_beta": 0.1, "block": {"pref_beta": 0.2}}, "sepo.pref_beta is 0.2 and rl_beta is 0.1"),
        ({"rl_beta": 0.1, "dpo_beta": 0.3}, "have the same meaning"),
        ({"rl_beta": "much"}, "expected a number"),
        ({"router_aux_loss_coef": -0.1}, "moe_aux_loss_coef is -0.1, expected a finite number"),
        (
            {"router_aux_loss_coef": 0.1, "overrides_of_model_config": {"router_aux_loss_coef": 0.2}},
            "router_aux_loss_coef is 0.1 and overrides_of_model_config.router_aux_loss_coef is 0.2",
        ),
        ({"overrides_of_model_config": {"output_router_logits": True}}, "set router_aux_loss_coef, or remove"),
        ({"block": {"select_ratoi": 0.3}}, "block sepo: unknown key 'select_ratoi'. Did you mean 'select_ratio'"),
        ({"block": {"select_ratio": 0.3}}, "token_scorer is none"),
        ({"block": {"stage": "sepo"}}, "rl is minor_dpo and sepo.stage is sepo"),
        ({"block": {"pref_ftx": -1}}, "pref_ftx is -1"),
        ({"block": {"token_scorer": "file"}, "excess_length_strategy": "truncate"}, "would belong to other tokens"),
        ({"rl": "kto"}, "rl is kto, expected one of sepo"),
        ({"rl": "dpo"}, "without a stage"),
        ({"rl": "selective_dop"}, "Did you mean 'selective_dpo'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_refusals_give_the_reason(root, tmp_path, more, message):
    with pytest.raises(SepoError, match=message):
        resolve_config(given(root, tmp_path, **more))


def test_the_keys_of_a_registered_weight_are_keys_of_the_block(root, tmp_path):
    from sepo.hosts.axolotl.arguments import SePOBlock

    block = {"objective": "dpo", "token_weight": "ending", "ending_last": 3}
    with on_path(write_example(tmp_path / "site", WEIGHT_EXAMPLE)):
        method = resolve_config(given(root, tmp_path, block=block)).settings.method
        assert method == resolve_method("dpo", token_weight="ending", ending_last=3, beta=method.reward.scale)
        validated = SePOBlock(**block).model_dump(exclude_none=True)
        assert validated == {"objective": "dpo", "token_weight": "ending", "own": {"ending_last": 3}}
        again = resolve_config({**given(root, tmp_path), "sepo": {**given(root, tmp_path)["sepo"], **validated}})
        assert again.settings.method == method
        with pytest.raises(SepoError, match="block sepo: unknown key 'endnig_last'"):
            resolve_config(given(root, tmp_path, block={**block, "endnig_last": 3}))


def test_keys_without_effect_are_named_once(root, tmp_path, caplog):
    made = given(root, tmp_path, early_stopping_patience=3, neftune_noise_alpha=5, group_by_length=True, relora=False)
    with caplog.at_level("WARNING", logger="sepo"):
        resolve_config({**made, "trainer_cls": TRAINER})
    first, second = caplog.messages
    assert first.startswith("early_stopping_patience and neftune_noise_alpha are set, but have no effect in this stage")
    assert second.startswith("group_by_length is set, but has no effect")


def test_keys_without_effect_are_keys_of_the_host():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    from sepo.hosts.axolotl.config import _IGNORED

    assert [name for name in _IGNORED if name not in AxolotlInputConfig.model_fields] == []


def test_tregs_prompts_need_rows_that_are_conversations(root, tmp_path):
    rows = [{"path": "x", "type": "chatml.intel"}]
    with pytest.raises(SepoError, match=r"chat_template\.default"):
        resolve_config(given(root, tmp_path, "treg", datasets=rows))
    oracle = {"treg_rewards": "oracle", "oracle_model": "a", "oracle_base_model": "b"}
    assert resolve_config(given(root, tmp_path, "treg", datasets=rows, block=oracle))


@pytest.mark.parametrize(
    ("key", "value"), [("rl_beta", 0.25), ("dpo_beta", 0.25), ("trl", {"beta": 0.25}), ("block", {"pref_beta": 0.25})]
)
def test_axolotls_keys_with_the_same_meaning_are_read(root, tmp_path, key, value):
    settings = resolve_config(given(root, tmp_path, **{key: value})).settings
    assert settings.method.hyperparameters["beta"] == 0.25


@pytest.mark.parametrize("more", [{"dpo_ld_alpha": 0.25}, {"block": {"ld_alpha": 0.25}}], ids=["host", "block"])
def test_the_hosts_length_weight_is_that_of_ld_dpo(root, tmp_path, more):
    block = {"objective": "ld_dpo", **more.pop("block", {})}
    resolved = resolve_config(given(root, tmp_path, block=block, **more))
    assert resolved.settings.method == resolve_method("ld_dpo", alpha=0.25)
    (changed,) = resolved.settings.overview.changed
    assert changed.origin == ("dpo_ld_alpha" if "dpo_ld_alpha" in more else "sepo.ld_alpha")


def test_a_list_of_oracles_is_one_of_the_block(root, tmp_path, plugin):
    """Through the host's merge and its validation to the trainer's arguments."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    oracles = [{"oracle_model_adapters": ["sft", "a"]}, {"oracle_model_adapters": "b"}]
    block = {"stage": "sepo", "oracle_model": None, "oracles": oracles, "oracle_scores": "centered"}
    made = given(root, tmp_path, stage="sepo", rl="dpo", block=block, trainer_cls=TRAINER)
    cfg = load_cfg(str(axo.write(made, tmp_path / "config.yaml")))
    arguments = PluginManager.get_instance().plugins[axo.PLUGIN].get_training_args(cfg)
    found = Resolved.from_json(arguments["sepo"]).settings.oracles
    assert [member.oracle.adapters for member in found.members] == [("sft", "a"), ("b",)]
    assert found.scores == "centered"
    assert found == resolve_config(made).settings.oracles


def test_a_sum_of_objectives_is_a_mapping_of_the_block(root, tmp_path, plugin):
    """Through the host's merge of the command line and its validation to the trainer's arguments."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    factors = {"dpo": 0.8, "orpo": 0.2}
    expected = resolve_method(factors)
    block = {"stage": "sepo", "objective": factors}
    made = given(root, tmp_path, rl="dpo", block=block, trainer_cls=TRAINER)
    assert resolve_config(made).settings.method == expected
    cfg = load_cfg(str(axo.write(made, tmp_path / "config.yaml")))
    assert dict(cfg.sepo.objective) == factors
    arguments = PluginManager.get_instance().plugins[axo.PLUGIN].get_training_args(cfg)
    assert Resolved.from_json(arguments["sepo"]).settings.method == expected
    other = load_cfg(str(axo.write(made, tmp_path / "other.yaml")), sepo__objective="{dpo: 0.5, sft: 1}")
    arguments = PluginManager.get_instance().plugins[axo.PLUGIN].get_training_args(other)
    assert Resolved.from_json(arguments["sepo"]).settings.method == resolve_method({"dpo": 0.5, "sft": 1.0})


def test_the_schema_has_the_block_and_refuses_other_keys(plugin):
    from pydantic import ValidationError

    from sepo.hosts.axolotl.arguments import SePOBlock, SePOConfig

    assert set(BLOCK_KEYS) == set(SePOBlock.model_fields) - {"own"}
    assert SePOConfig(sepo={"stage": "sepo", "select_ratio": 0.3}).sepo.select_ratio == 0.3
    with pytest.raises(ValidationError, match=r"unknown key 'orcale_model'\. Did you mean 'oracle_model'"):
        SePOConfig(sepo={"orcale_model": "x"})
    assert SePOConfig().sepo is None


def test_a_whole_config_passes_axolotls_own_validation(root, tmp_path, plugin):
    from axolotl.cli.config import load_cfg

    made = given(root, tmp_path, "sepo", block={"select_ratio": 0.5})
    cfg = load_cfg(str(axo.write(made, tmp_path / "config.yaml")), sepo__select_rule="quantile")
    assert (cfg.rl, cfg.sepo.stage, cfg.sepo.select_ratio) == ("dpo", "sepo", 0.5)
    from axolotl.integrations.base import PluginManager

    selector = PluginManager.get_instance().plugins[axo.PLUGIN].resolved.settings.method.selector
    assert (selector.rule, selector.chosen_ratio) == ("quantile", 0.5)


def test_a_user_error_is_printed_in_one_line(plugin, monkeypatch, capsys):
    """By the hook for uncaught exceptions; other errors keep their traceback."""
    import sys

    for rank, printed in ((None, "sepo: error: no such oracle\n"), ("3", "[rank 3] sepo: error: no such oracle\n")):
        monkeypatch.delenv("RANK", raising=False)
        if rank:
            monkeypatch.setenv("RANK", rank)
        sys.excepthook(SepoError, SepoError("no such oracle"), None)
        assert capsys.readouterr().err == printed
    sys.excepthook(ValueError, ValueError("of another package"), None)
    assert "ValueError: of another package" in capsys.readouterr().err
