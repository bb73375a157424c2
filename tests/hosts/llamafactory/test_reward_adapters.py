"""Reward models of the host's own stage `rm`: the values of its trainer, for adapters and whole models."""

import json
import sys

import pytest
import torch
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer

import sepo.hosts.llamafactory.scoring_models  # noqa: F401
from sepo.rewards import SampledResponse, check_rewards, open_rewards, resolve_rewards
from sepo.scoring.hub import hub_access
from tests.support import tiny
from tests.support.recipes import WORKER, environment, host_recipe, run

pytestmark = pytest.mark.host

KINDS = {"lora": {"finetuning_type": "lora"}, "full": {"finetuning_type": "full"}}


def recipe(world, output, **keys):
    made = host_recipe(world, output, stage="rm", max_steps=3, save_strategy="no", learning_rate=0.01, **keys)
    return {name: value for name, value in made.items() if not (keys["finetuning_type"] == "full" and "lora" in name)}


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Return a directory with what stage rm trained, by kind; one process runs both."""
    folder = tmp_path_factory.mktemp("rm")
    file = folder / "recipes.json"
    file.write_text(json.dumps([recipe(world, folder / kind, **keys) for kind, keys in KINDS.items()]))
    run([sys.executable, WORKER, file], cwd=folder, env=environment())
    return folder


def host_values(world, folder, kind):
    """Return the host's own values at the last tokens of its rows, one row at a time."""
    named = {"adapter_name_or_path": str(folder)} if kind == "lora" else {"model_name_or_path": str(folder)}
    made = recipe(world, folder.parent / "again", **KINDS[kind], **named, disable_shuffling=True)
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(made)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)["train_dataset"]
    model = load_model(module["tokenizer"], model_args, finetuning_args, False, True)
    with torch.no_grad():
        return [
            float(model(torch.tensor([row[f"{side}_input_ids"]]))[2][0, -1])
            for row in rows
            for side in ("chosen", "rejected")
        ]


def responses():
    return [
        SampledResponse(
            ({"role": "user", "content": row["conversations"][0]["value"]},), (1,), row[side]["value"], (2,), True
        )
        for row in tiny.pairs(24)
        for side in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_rewards_are_the_hosts_values(world, trained, tmp_path, kind):
    folder = trained / kind
    assert (folder / "value_head.safetensors").is_file()
    own = {"judge_model": str(world / "policy"), "judge_model_adapters": str(folder)}
    settings = resolve_rewards({"judge": "reward_model", **(own if kind == "lora" else {"judge_model": str(folder)})})
    model_args = get_train_args(recipe(world, tmp_path / "run", **KINDS["lora"]))[0]
    check_rewards(settings, access=hub_access(model_args))
    found = open_rewards(settings, model_args=model_args, device=torch.device("cpu"))(responses())
    expected = host_values(world, folder, kind)
    assert max(expected) - min(expected) > 0.05
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert len(set(found)) > 12
