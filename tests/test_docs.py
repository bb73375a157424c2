"""Checks of the documentation against the code."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
SOURCE = ROOT / "plugin" / "sepo"


def anchors(page):
    """Return the anchors of a page's headings, in GitHub's format."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_relative_link_has_a_target(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize(
    "page",
    [
        "keys.md",
        "eval_json.md",
        "pairs_and_rto.md",
        "credit_estimators.md",
        "evidence.md",
        "train_an_oracle.md",
        "demo.svg",
        "../README.md",
        "credit.md",
    ],
)
def test_pages_are_written_from_the_code(page):
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
    assert (ROOT / "docs" / page).read_text() == pages[page](), "run: make docs"


def test_every_sepo_key_is_in_the_table():
    from sepo.objectives import SCORERS
    from sepo.objectives.presets import BUILT_IN
    from sepo.recipe.keys import COMPARE_KEYS, HOST_KEYS, PIPELINE_KEYS, REWARD_KEYS, SEPO_KEYS
    from sepo.recipe.stage_names import STAGES

    made = (ROOT / "docs" / "keys.md").read_text()
    for name in (*SEPO_KEYS, *HOST_KEYS, *PIPELINE_KEYS, *COMPARE_KEYS, *REWARD_KEYS, *BUILT_IN, *STAGES, *SCORERS):
        assert f"`{name}`" in made, name


def test_every_key_has_a_meaning_and_no_default_is_left_out():
    from sepo.recipe.keys import KEYS

    without = {"oracle_model", "oracle_model_adapters", "oracle_base_model_adapters", "oracle_model_quantization_bit"}
    for name, key in KEYS.items():
        assert key.help.endswith("."), name
        assert bool(key.default_text) != (name in without), name


def test_every_objective_scorer_weight_and_count_is_explained():
    from sepo.objectives import SCORERS
    from sepo.objectives.presets import BUILT_IN, available_weights
    from sepo.selection.select import COUNTS, RULES

    text = (ROOT / "docs" / "methods" / "objectives.md").read_text()
    for name in (*BUILT_IN, *SCORERS, *available_weights()):
        assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", text, re.MULTILINE), name
    for name in (*RULES, *COUNTS):
        assert re.search(rf"^\|[^|]*\|[^|]*`{name}`[^|]*\|", text, re.MULTILINE), name


def test_the_page_of_token_weights_has_all_of_them_with_their_keys():
    from sepo.objectives.presets import BUILT_IN, available_weights, find_objective
    from sepo.recipe.keys import HOST_KEYS, KEYS

    rows = [line for line in (ROOT / "docs" / "methods" / "weights.md").read_text().splitlines() if line[:3] == "| `"]
    found = {line.split("`")[1]: line for line in rows if not line.startswith("| `token_weight` |")}
    assert set(found) == set(available_weights())
    for key, row in {**KEYS, **HOST_KEYS}.items():
        if row.weighs is not None:
            assert f"`{key}`" in found[row.weighs[0]], key
    for name in BUILT_IN:
        if (weight := find_objective(name).weight) != "none":
            assert f"`{name}`" in found[weight], name


def literals():
    """Yield all string literals of the code; f-strings give their literal pieces."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_troubleshooting_is_built_from_the_real_messages():
    """Code spans in the first column are literals of the code; `...` stands for a value."""
    texts = list(literals())
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    pieces = [piece for row in rows for code in re.findall(r"`([^`]+)`", row) for piece in re.split(r"\.\.\.", code)]
    pieces = [piece.strip(" '") for piece in pieces]
    assert len(pieces) > 40
    for piece in filter(None, pieces):
        assert any(piece in text for text in texts), piece


def test_the_metrics_of_a_step_are_explained():
    text = (ROOT / "docs" / "metrics.md").read_text()
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
        assert f"`{metric}`" in text
