"""Checks of the README, and the Python examples of the documentation."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXTEND = (ROOT / "docs" / "extend.md").read_text()


def python_block(word):
    """Return the only Python example that contains this word."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", EXTEND, re.DOTALL) if word in block]
    return block


def test_the_python_example_runs_and_its_values_are_correct():
    names = {}
    exec(python_block("compute_preference_loss("), names)
    out = names["out"]
    assert out.losses.item() == pytest.approx(-torch.nn.functional.logsigmoid(torch.tensor(1.0)).item())
    assert out.chosen_selection.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("objective", ["sepo", "selective_dpo", "dpo_reg", "minor_dpo"])
def test_training_example_trains_each_stage_by_its_name(objective, world, tmp_path, monkeypatch):
    """The example is unchanged except for the method's name and TrainingArguments for a test."""
    from transformers import AutoModelForCausalLM, TrainingArguments

    lines = [line for line in python_block("PreferenceTrainer(").splitlines() if line]
    assert len(lines) <= 16
    line = lines.index('method = resolve_method("sepo")')
    lines[line] = lines[line].replace("sepo", objective)
    made = TrainingArguments.__init__
    small = {"num_train_epochs": 1, "use_cpu": True, "report_to": "none", "dataloader_pin_memory": False}
    monkeypatch.setattr(TrainingArguments, "__init__", lambda self, **given: made(self, **given, **small))
    pairs = [
        {"prompt": f"How many legs has creature {n}?", "chosen": f"It has {n} legs.", "rejected": "It has wings."}
        for n in range(4)
    ]
    names = {f"{role}_path": str(world / role) for role in ("policy", "oracle", "base")}
    names |= {"pairs": pairs, "output": str(tmp_path)}
    exec("\n".join(lines), names)
    logged = [entry for entry in names["trainer"].state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all("rewards/margins" in entry for entry in logged)
    for feature in ("treg/reward_chosen", "kl/chosen", "objective/rejected_clamped"):
        owners = {"treg/reward_chosen": ("dpo_reg",), "objective/rejected_clamped": ("minor_dpo",)}
        assert (feature in logged[0]) == (objective in owners.get(feature, ("selective_dpo", "dpo_reg", "minor_dpo")))
    trained = AutoModelForCausalLM.from_pretrained(tmp_path)
    before = AutoModelForCausalLM.from_pretrained(world / "policy")
    assert not torch.equal(trained.lm_head.weight, before.lm_head.weight)


def test_the_packages_of_the_page_are_the_examples():
    names = ("own_loss", "own_scorer", "own_weight")
    for file, language in (("{}.py", "py"), ("pyproject.toml", "toml")):
        for name, block in zip(names, re.findall(rf"```{language}\n(.*?)```", EXTEND, re.DOTALL), strict=True):
            assert block in (ROOT / "yaml_examples" / name / file.format(name)).read_text()


def test_every_command_is_real():
    from sepo.cli.main import build_parser

    (commands,) = [action.choices for action in build_parser()._actions if action.choices]
    assert set(re.findall(r"`sepo (\w+)", README)) == set(commands)
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
