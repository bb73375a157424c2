"""Every model type of transformers has the numbers of its own logits, with and without shared prompts, or a refusal."""

import re
from pathlib import Path

import pytest
import transformers

from tests.support.model_sweep import NOT_REACHED, ONCE, PAGE, REFUSED, TYPES, outcome_of, page, recorded

# warnings of the models' own code
pytestmark = pytest.mark.filterwarnings("ignore")

LOCK = Path(__file__).parents[2] / "requirements" / "llamafactory.txt"
MIXTURES = (
    "afmoe", "ernie4_5_moe", "flex_olmo", "jetmoe", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe",
    "qwen3_moe",
)  # fmt: skip


@pytest.mark.parametrize("model_type", TYPES)
def test_the_numbers_are_those_of_the_model(model_type):
    outcome = outcome_of(model_type)
    assert (outcome.prompts == ONCE) == (outcome.reason == "")
    version, outcomes = recorded()
    if version == transformers.__version__:
        assert outcome == outcomes.get(model_type), "run: make docs"


def test_the_page_is_of_the_locked_version_and_of_every_type():
    version, outcomes = recorded()
    assert re.findall(r"^transformers==(\S+)", LOCK.read_text(), re.MULTILINE) == [version], "run: make docs"
    if version == transformers.__version__:
        assert tuple(outcomes) == TYPES, "run: make docs"
        assert PAGE.read_text() == page(outcomes), "run: make docs"
    assert sum(outcome.prompts not in (REFUSED, NOT_REACHED) for outcome in outcomes.values()) >= 120
    assert {outcomes[model_type].prompts for model_type in MIXTURES} == {ONCE}
