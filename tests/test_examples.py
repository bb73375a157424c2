"""Every recipe in yaml_examples/ is resolved as in a run; those of sepo's stages are trained, scaled down."""

import contextlib
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import tiny
from tests.support.experts import save_experts
from tests.support.packages import WITH_RECIPES, on_path, write_example
from tests.support.rows import prepared

ROOT = Path(__file__).parents[1]
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
# Those for Axolotl run in its own environment, tests/hosts/axolotl.
EXAMPLES = sorted(p for p in (ROOT / "yaml_examples").rglob("*.yaml") if p.parent.name != "axolotl")
assert EXAMPLES


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_key_is_known_and_the_header_gives_the_command(path, tmp_path):
    from sepo.hosts.llamafactory.chain_steps import SECTIONS, plan_steps
    from sepo.hosts.llamafactory.compared_oracle import with_oracle
    from sepo.hosts.llamafactory.recipe import host_keys
    from sepo.recipe.comparison import SECTIONS as VARIANTS
    from sepo.recipe.comparison import read_comparison
    from sepo.recipe.resolve import resolve
    from sepo.recipe.rto import resolve_rto
    from sepo.recipe.stage_names import RTO, is_sepo_stage

    recipe, known = load(path), host_keys()
    command = "compare" if set(VARIANTS) & set(recipe) else "pipeline" if set(SECTIONS) & set(recipe) else "train"
    assert f"#   sepo {command} {path.relative_to(ROOT)}" in path.read_text()
    steps = [recipe]
    if command == "pipeline":
        steps = [step.recipe for step in plan_steps(recipe) if step.name not in ("pairs", "sample")]
    elif command == "compare":
        comparison, oracle = with_oracle(read_comparison(recipe))
        steps = [run.recipe for run in comparison.runs()] + (
            [] if oracle is None else [step.recipe for step in oracle.steps[1:]]
        )
    # The stage of a recipe for a package's own loss exists if that package is installed.
    packaged = path.parent in WITH_RECIPES
    with on_path(write_example(tmp_path, path.parent)) if packaged else contextlib.nullcontext():
        for step in steps:
            if step["stage"] == RTO:
                resolve_rto(step, host_keys=known)
            elif is_sepo_stage(step["stage"]):
                resolve(step, host_keys=known)
            else:
                assert set(step) <= set(known)


def test_the_grid_in_the_comment_of_the_comparison_is_25_variants():
    from sepo.recipe.comparison import read_comparison

    text = (ROOT / "yaml_examples" / "compare.yaml").read_text()
    _, commented, grid = text.partition("  # sepo_ratios:\n")
    assert commented
    names = [
        v.name
        for v in read_comparison(
            yaml.safe_load(text.replace(grid, grid.replace("  # ", "  ")).replace(commented, "  sepo_ratios:\n"))
        ).variants
    ]
    assert len([name for name in names if name.startswith("sepo_ratios-")]) == 50  # at two learning rates


def paper_rows():
    """Yield the rows of the table of papers: title, recipes, and changed keys."""
    text = RECIPES.partition("## From a paper to a recipe")[2]
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| paper"):
            paper, experiment, recipes, changes = (cell.strip() for cell in line.strip("|").split("|"))
            names = re.findall(r"\]\(\.\./(yaml_examples/[^)]+)\)", recipes)
            changed = re.findall(r"`([^`]+)`", changes)
            yield f"{paper}: {experiment}", names, [yaml.safe_load(change) for change in changed]


def test_every_recipe_is_in_a_table_and_the_papers_table_names_no_other():
    recipes = {str(path.relative_to(ROOT)) for path in EXAMPLES}
    linked = set(re.findall(r"\]\(\.\./(yaml_examples/[^)]+)\)", RECIPES))
    folders = {name for name in linked if not name.endswith(".yaml")}
    assert {name for name in recipes if not name.startswith(tuple(folders))} <= linked
    assert {name for _, names, _ in paper_rows() for name in names} <= recipes


@pytest.mark.parametrize(("names", "changes"), [row[1:] for row in paper_rows()], ids=[row[0] for row in paper_rows()])
def test_a_papers_recipe_takes_the_changes_of_its_row(names, changes):
    from sepo.hosts.llamafactory.chain_steps import SECTIONS, plan_steps
    from sepo.hosts.llamafactory.recipe import host_keys
    from sepo.recipe.resolve import resolve

    assert names or not changes
    changed = {key: value for change in changes for key, value in change.items()}
    for name in names if changed else []:
        recipe = {**load(ROOT / name), **changed}
        pipeline = bool(set(SECTIONS) & set(recipe))
        resolve(plan_steps(recipe)[-1].recipe if pipeline else recipe, host_keys=host_keys())


def test_the_recipe_of_the_credit_benchmark_is_a_pipeline():
    from sepo.hosts.llamafactory.chain_steps import plan_steps
    from sepo.hosts.llamafactory.recipe import host_keys
    from sepo.recipe.resolve import resolve

    recipe = load(ROOT / "benchmarks" / "credit_demo.yaml")
    steps = plan_steps({**recipe, "model_name_or_path": "m", "dataset_dir": "d", "output_dir": "o"})
    resolve(steps[-1].recipe, host_keys=host_keys())


def scored_pairs(world, folder):
    """Write the tiny pairs with a score in [0, 1] for every response token, and return their directory."""
    from transformers import AutoTokenizer

    rows = tiny.pairs(24)
    tiny.save_pairs(folder)
    words = AutoTokenizer.from_pretrained(world / "policy")
    tokenized = prepared(folder, words, dataset="tiny_pairs", carry=False)["train_dataset"]
    for row, tokens in zip(rows, tokenized, strict=True):
        for side in ("chosen", "rejected"):
            count = sum(label != -100 for label in tokens[f"{side}_labels"])
            row[f"{side}_scores"] = [position / count for position in range(count)]
    (folder / "tiny_pairs.json").write_text(json.dumps(rows))
    return folder


def standing_in(recipe, world, folder):
    """Return a recipe with tiny models and data in place of its own, for two steps."""
    policy = world / "policy"
    if "moe_aux_loss_coef" in recipe:
        policy = save_experts(folder / "policy")
    kept = {key: value for key, value in recipe.items() if not key.startswith("oracle_") or key.endswith("_bit")}
    if any(key.startswith("oracle_") for key in recipe):
        kept |= {"oracle_model": str(world / "oracle"), "oracle_base_model": str(world / "base")}
    if "ref_model" in recipe:
        kept["ref_model"] = str(world / "base")
    return {
        **kept, "model_name_or_path": str(policy), "dataset": "tiny_pairs",
        "dataset_dir": str(world / "data"), "template": "chatml", "cutoff_len": 128, "output_dir": str(folder / "out"),
        "max_steps": 2, "logging_steps": 1, "token_scores_dir": str(folder / "scores"), "use_cpu": True,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0, "plot_loss": False,
    }  # fmt: skip


@pytest.mark.host
def test_every_recipe_of_a_sepo_stage_runs_on_a_stand_in(world, tmp_path):
    """One process runs all of them. Recipes with packages and chains of steps have their own tests."""
    from sepo.hosts.llamafactory.recipe import host_keys
    from sepo.recipe.resolve import resolve
    from sepo.recipe.stage_names import is_sepo_stage
    from tests.support.recipes import WORKER, adapter, environment, logged, run

    recipes, scored = {}, str(scored_pairs(world, tmp_path / "scored"))
    for path in EXAMPLES:
        recipe = load(path)
        packaged = path.parent in WITH_RECIPES
        if not packaged and is_sepo_stage(recipe.get("stage")):
            folder = tmp_path / path.stem
            folder.mkdir()
            recipes[path.stem] = standing_in(recipe, world, folder)
            if resolve(recipe, host_keys=host_keys())[1].method.scorer == "file":
                recipes[path.stem]["dataset_dir"] = scored
    assert len(recipes) >= 24
    (tmp_path / "recipes.json").write_text(json.dumps(list(recipes.values())))
    run([sys.executable, WORKER, tmp_path / "recipes.json"], cwd=tmp_path, env=environment())
    for name, recipe in recipes.items():
        output = tmp_path / name / "out"
        losses = [entry["loss"] for entry in logged(output) if "loss" in entry]
        assert len(losses) == 2, name
        assert recipe.get("finetuning_type", "lora") != "lora" or adapter(output), name
