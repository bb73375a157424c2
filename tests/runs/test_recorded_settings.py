"""What readers of a run find in its settings file is the method of the run."""

import json
from dataclasses import replace

import pytest
import torch

from sepo.objectives import SCORERS, WEIGHTS, Selector, available_objectives, resolve_method, select, weigh
from sepo.recipe.settings import RunSettings
from sepo.report.selecting import method_of, with_weights
from sepo.runs.selection_settings import recorded_selector, selected_ratio
from sepo.runs.settings_texts import recorded_factors, recorded_objective, recorded_weight

FILES = {"token_scorer": "file"}
TGDPO = {"tgdpo.beta": 0.3, "tgdpo.alpha": 0.7}


def recorded(method):
    """Return the settings of a method as read from a file."""
    settings = RunSettings("sepo", method, None, None, score_batch_tokens=1, head_chunk_tokens=None)
    return json.loads(json.dumps(settings.as_dict()))


METHODS = [
    *(resolve_method(name) for name in available_objectives()),
    *(resolve_method("sepo", **FILES, token_weight=name) for name in ("position", "length", "importance", "critical")),
    resolve_method("simpo", beta=3.0, **FILES, token_weight="length", length_alpha=0.1, count="shorter"),
    resolve_method({"dpo": 0.8, "orpo": 0.2}, token_weight="position"),
    resolve_method({"tgdpo": 0.5, "dpop": 0.5}, **FILES, token_weight="reward", **TGDPO),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.token_weight}")
def test_a_selection_and_its_weights_are_read_back(method):
    settings = recorded(method)
    assert recorded_selector(settings) == method.selector
    if method.weighs_by_states:
        return
    again = with_weights(method_of(settings), settings)
    assert (again is None) == (method.selector is None and method.token_weight is None)
    if again is None:
        return
    assert (again.selector, again.token_weight) == (method.selector, method.token_weight)
    assert again.token_scorer.rejected_largest == method.token_scorer.rejected_largest
    if method.token_weight is None or method.token_scorer.live:
        return
    draw = torch.Generator().manual_seed(4)
    masks = {"chosen_mask": torch.ones(1, 9, dtype=torch.bool), "rejected_mask": torch.ones(1, 6, dtype=torch.bool)}
    scores = {f"{side}_scores": torch.rand(1, n, generator=draw) for side, n in (("chosen", 9), ("rejected", 6))}
    found = []
    for one in (method, again):
        chosen, rejected = select(one, **masks, **scores)
        found += weigh(one, **masks, **scores, chosen_selection=chosen, rejected_selection=rejected)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_every_built_in_weight_is_among_the_methods():
    assert {type(method.token_weight) for method in METHODS} >= {
        rule.build for name, rule in WEIGHTS.items() if name not in ("scores", "transport")
    }


def test_a_share_is_read_only_if_it_selects():
    shares = Selector(chosen_ratio=0.4, rejected_ratio=0.2)
    method = replace(resolve_method("dpo"), token_scorer=SCORERS["file"], selector=shares)
    for rule, ratios in (({}, (0.4, 0.2)), ({"rule": "mean"}, (None, None)), ({"count": "shorter"}, (None, None))):
        settings = recorded(replace(method, selector=replace(shares, **rule)))
        assert tuple(selected_ratio(settings, side) for side in ("chosen", "rejected")) == ratios
    assert selected_ratio(recorded(resolve_method("dpo")), "chosen") is None
    for broken in ("x", [], {"chosen_ratio": 0.3}, {"chosen_ratio": True, "rejected_ratio": 1.5}, {"more": 1}):
        assert selected_ratio({"select": broken}, "chosen") is None


def test_sums_and_weights_are_in_words():
    settings = recorded(resolve_method({"dpo": 0.8, "orpo": 1, "sft": 0.05}, token_weight="position"))
    assert recorded_factors(settings) == {"dpo": 0.8, "orpo": 1.0, "sft": 0.05}
    assert recorded_objective(settings) == "0.8 × dpo + 1 × orpo + 0.05 × sft"
    assert recorded_weight(settings) == "position (decay 0.98)"
    plain = recorded(resolve_method("dpo"))
    assert (recorded_factors(plain), recorded_objective(plain), recorded_weight(plain)) == ({}, "dpo", "")
    assert not {"factors", "reward_scale"} & set(plain)
    for broken in ({}, {"objective": 3}, {"factors": {"dpo": "x"}}, {"factors": [1], "token_weight": 2}):
        assert (recorded_factors(broken), recorded_objective(broken), recorded_weight(broken)) == ({}, "", "")
