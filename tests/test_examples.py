"""Every recipe in yaml_examples/ is resolved as a run resolves it; those of our stages are trained, scaled down."""

import contextlib
import re
from pathlib import Path

import pytest
import yaml

from packages import EXAMPLE, SCORER_EXAMPLE, on_path, write_example

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "yaml_examples").rglob("*.yaml"))
assert EXAMPLES


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_key_is_known_and_the_header_gives_the_command(path, tmp_path):
    from sepo.hosts.llamafactory.arguments import resolve
    from sepo.hosts.llamafactory.pipeline import SECTIONS, plan_steps
    from sepo.hosts.llamafactory.registration import host_keys
    from sepo.hosts.llamafactory.stages import is_ours

    recipe, known = load(path), host_keys()
    command = "pipeline" if set(SECTIONS) & set(recipe) else "train"
    assert f"#   sepo {command} {path.relative_to(ROOT)}" in path.read_text()
    steps = [step.recipe for step in plan_steps(recipe) if step.name != "sample"] if command == "pipeline" else [recipe]
    # A recipe for a package's own loss is one of ours where that package is installed.
    packaged = path.parent in (EXAMPLE, SCORER_EXAMPLE)
    with on_path(write_example(tmp_path, path.parent)) if packaged else contextlib.nullcontext():
        for step in steps:
            if is_ours(step["stage"]):
                resolve(step, host_keys=known)
            else:
                assert set(step) <= set(known)


def paper_rows():
    """The README's table of papers: the recipes that each row names, and the keys that it changes."""
    text = (ROOT / "README.md").read_text().partition("### From a paper to a recipe")[2].partition("\n### ")[0]
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| paper"):
            paper, experiment, recipes, changes = (cell.strip() for cell in line.strip("|").split("|"))
            names = re.findall(r"\]\((yaml_examples/[^)]+)\)", recipes)
            changed = re.findall(r"`([^`]+)`", changes)
            yield f"{paper}: {experiment}", names, [yaml.safe_load(change) for change in changed]


def test_every_recipe_is_in_a_table_and_the_papers_table_names_no_other():
    recipes = {str(path.relative_to(ROOT)) for path in EXAMPLES}
    linked = set(re.findall(r"\]\((yaml_examples/[^)]+)\)", (ROOT / "README.md").read_text()))
    folders = {name for name in linked if not name.endswith(".yaml")}
    assert {name for name in recipes if not name.startswith(tuple(folders))} <= linked
    assert {name for _, names, _ in paper_rows() for name in names} <= recipes


@pytest.mark.parametrize(("names", "changes"), [row[1:] for row in paper_rows()], ids=[row[0] for row in paper_rows()])
def test_a_papers_recipe_takes_the_changes_of_its_row(names, changes):
    from sepo.hosts.llamafactory.arguments import resolve
    from sepo.hosts.llamafactory.pipeline import SECTIONS, plan_steps
    from sepo.hosts.llamafactory.registration import host_keys

    assert names or not changes
    changed = {key: value for change in changes for key, value in change.items()}
    for name in names if changed else []:
        recipe = {**load(ROOT / name), **changed}
        pipeline = bool(set(SECTIONS) & set(recipe))
        resolve(plan_steps(recipe)[-1].recipe if pipeline else recipe, host_keys=host_keys())


def test_the_demo_recipe_is_a_pipeline():
    from sepo.hosts.llamafactory.arguments import resolve
    from sepo.hosts.llamafactory.pipeline import plan_steps
    from sepo.hosts.llamafactory.registration import host_keys

    recipe = load(ROOT / "plugin" / "sepo" / "demo" / "recipe.yaml")
    steps = plan_steps({**recipe, "model_name_or_path": "m", "dataset_dir": "d", "output_dir": "o"})
    resolve(steps[-1].recipe, host_keys=host_keys())


@pytest.mark.host
@pytest.mark.parametrize("name", ["sepo_qlora.yaml", "oracle_minor_dpo_lora.yaml"])
def test_recipes_of_our_stage_run_on_a_stand_in(name, world, tmp_path):
    """The example as it is, with tiny models and data in place of what it names, for two steps."""
    from recipes import adapter, logged, sepo_train

    stand_in = {
        "model_name_or_path": str(world / "policy"), "dataset": "tiny_pairs", "dataset_dir": str(world / "data"),
        "template": "chatml", "cutoff_len": 128, "output_dir": str(tmp_path / "out"), "max_steps": 2,
        "logging_steps": 1, "token_scores_dir": str(tmp_path / "scores"), "use_cpu": True,
        "gradient_accumulation_steps": 1, "preprocessing_num_workers": 1, "dataloader_num_workers": 1,
    }  # fmt: skip
    recipe = {key: value for key, value in load(ROOT / "yaml_examples" / name).items() if not key.startswith("oracle_")}
    recipe |= stand_in
    oracle = {"oracle_model": str(world / "oracle"), "oracle_base_model": str(world / "base")}
    if "qlora" in name:
        oracle["oracle_model_quantization_bit"] = 4
    sepo_train({**recipe, **oracle}, tmp_path)
    assert adapter(tmp_path / "out")
    losses = [entry["loss"] for entry in logged(tmp_path / "out") if "loss" in entry]
    assert len(losses) == 2
