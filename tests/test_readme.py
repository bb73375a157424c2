"""The README's promises that can be checked from here."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_example_runs_and_says_the_truth():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(block, names)
    out = names["out"]
    assert out.losses.item() == pytest.approx(-torch.nn.functional.logsigmoid(torch.tensor(1.0)).item())
    assert out.chosen_selection.tolist() == [[False, True, False, False]]


def test_every_key_is_in_the_table():
    from sepo.hosts.llamafactory.keys import OUR_KEYS

    for key in OUR_KEYS:
        assert f"`{key}`" in README, key


def test_every_objective_of_a_recipe_is_in_the_table():
    from sepo.hosts.llamafactory.arguments import TOKEN_SCORERS
    from sepo.hosts.llamafactory.stages import STAGES
    from sepo.objectives.presets import BUILT_IN

    for name in (*BUILT_IN, *STAGES, *TOKEN_SCORERS):
        assert f"`{name}`" in README, name


def test_the_own_loss_is_the_example():
    (block,) = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    assert block in (ROOT / "yaml_examples" / "own_loss" / "own_loss.py").read_text()
    (toml,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert toml in (ROOT / "yaml_examples" / "own_loss" / "pyproject.toml").read_text()


def test_every_metric_is_in_the_table():
    for metric in (
        "rewards/chosen",
        "rewards/margins",
        "logps/rejected",
        "select/chosen_ratio",
        "select/tokens",
        "kl/chosen",
        "treg/reward_chosen",
        "treg/reward_rejected",
        "objective/treg_weight",
        "kl/chosen_full",
        "objective/pair_weight",
    ):
        assert f"`{metric}`" in README


def test_every_command_and_link_is_real():
    from sepo.cli import _parser

    (commands,) = [action.choices for action in _parser()._actions if action.choices]
    assert set(re.findall(r"`sepo (\w+)", README)) == set(commands)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
