"""Every recipe in yaml_examples/axolotl resolves, passes Axolotl's validation, and trains on tiny models and data."""

import json
from pathlib import Path

import pytest
import yaml

from tests.support import axo

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "yaml_examples" / "axolotl").glob("*.yaml"))
assert len(EXAMPLES) >= 3


def small_groups(root, recipe, folder):
    """Return the keys that make a recipe of stage `rto` small: two responses, and expected answers in the rows."""
    rows = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()]
    column = recipe["sepo"]["expected_column"]
    path = axo.save_rows(folder / "prompts.jsonl", [{**row, column: "e"} for row in rows])
    entry = {**axo.rows_at(path), "type": recipe["datasets"][0]["type"]}
    return {"datasets": [entry], "trl": {**recipe["trl"], "num_generations": 2, "max_completion_length": 4}}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_recipe_trains_on_tiny_models(path, root, tmp_path, train, losses):
    text = path.read_text()
    assert f"#   axolotl train {path.relative_to(ROOT)}" in text
    recipe, output = yaml.safe_load(text), tmp_path / "out"
    block = {**recipe["sepo"], "token_scores_dir": str(tmp_path / "scores")}
    for key, model in (("oracle_model", "oracle"), ("oracle_base_model", "base"), ("ref_model", "base")):
        if key in block:
            block[key] = str(root / model)
    stand_in = axo.config(root, output)
    names = ("base_model", "chat_template", "special_tokens", "datasets", "dataset_prepared_path", "output_dir", "bf16")
    small = {"max_steps": 2, "micro_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1}
    kept = {name: stand_in[name] for name in (*names, "fp16", "tf32", "dataset_num_proc", "save_strategy")}
    if recipe["rl"] == "rto":
        kept |= small_groups(root, recipe, tmp_path)
        del block["token_scores_dir"]
    assert len(losses(train({**recipe, **kept, **small, "sepo": block}))) == 2
