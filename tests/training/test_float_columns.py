"""A precomputed reference: the step with stored log-probabilities equals that with a live reference."""

import contextlib
import doctest

import pytest
import torch
from transformers import LlamaForCausalLM

import sepo.training.float_columns
from sepo.errors import SepoError
from sepo.forward.sequences import LogProbScorer, ScoredSequence, ScoringModel
from sepo.objectives import resolve_method
from sepo.training import REF_LOGPS, ReferenceCollator, RewardCollator, preference_step
from sepo.training.float_columns import batch_floats
from tests.support.steps import PAIRS, assert_same, collate, make_pairs

FLOAT32 = 1e-6
"""Stored log-probabilities are float32."""


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def models(world, request):
    """Policy and reference, and the tolerance between two ways to compute the same step."""
    names = ("policy", "base")
    loaded = [LlamaForCausalLM.from_pretrained(world / name, dtype=request.param).eval() for name in names]
    return *loaded, FLOAT32 if request.param == torch.float64 else 2e-5


def running(model):
    return lambda: contextlib.nullcontext(model)


def stored(reference, pairs, batch_tokens=64):
    """Return the pairs with their reference log-probabilities, computed in separate batches."""
    scorer = LogProbScorer(ScoringModel(reference, contextlib.nullcontext), batch_tokens=batch_tokens)
    rows = [dict(pair) for pair in pairs]
    for side in ("chosen", "rejected"):
        sequences = [
            ScoredSequence(row[f"{side}_input_ids"], len(row[f"{side}_labels"]) - len(row[f"{side}_scores"]))
            for row in rows
        ]
        for row, logps in zip(rows, scorer.score(sequences), strict=True):
            row[f"{side}_ref_logps"] = logps.tolist()
    return rows


def batch_of(rows, method, extra=0):
    return ReferenceCollator(lambda some: collate(some, method, extra=extra))(rows)


METHODS = {
    **{name: {} for name in ("dpo", "minor_dpo", "selective_dpo", "ipo", "wpo", "hinge")},
    "oracle-selected minor_dpo": {"token_scorer": "oracle", "chosen_ratio": 0.4, "rejected_ratio": 0.25},
    "simpo, live selection": {"token_scorer": "policy_ref", "chosen_ratio": 0.5, "rejected_ratio": 0.5},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_stored_reference_equals_a_live_one(models, name):
    policy, reference, tolerance = models
    objective = next(word for word in name.replace(",", "").split() if not word.startswith("oracle"))
    method = resolve_method(objective, **METHODS[name])
    live = preference_step(policy, collate(PAIRS, method), method=method, reference=running(reference))
    batch = batch_of(stored(reference, PAIRS), method)
    cached = preference_step(policy, batch, method=method)
    assert_same(policy, cached.loss, live.loss, tolerance=tolerance)
    assert cached.metrics == pytest.approx(live.metrics, rel=1e-4, abs=1e-5)
    assert abs(live.metrics["kl/chosen"]) > 1e-3


def test_it_composes_with_token_rewards(models):
    policy, reference, tolerance = models
    method = resolve_method("dpo_reg")
    live = RewardCollator(lambda rows: collate(rows, method), origin="oracle")
    both = ReferenceCollator(live)(stored(reference, PAIRS))
    expected = preference_step(policy, live(PAIRS), method=method, reference=running(reference))
    assert_same(policy, preference_step(policy, both, method=method).loss, expected.loss, tolerance=tolerance)


def test_padding_and_order_do_not_matter(models):
    policy, reference, tolerance = models
    method = resolve_method("selective_dpo")
    rows = stored(reference, make_pairs(4, seed=5), batch_tokens=1)
    whole = preference_step(policy, batch_of(rows, method), method=method)
    moved = batch_of([rows[index] for index in (2, 0, 3, 1)], method, extra=7)
    assert_same(policy, preference_step(policy, moved, method=method).loss, whole.loss, tolerance=tolerance)


def test_a_given_reference_takes_precedence(models):
    policy, reference, _ = models
    method = resolve_method("dpo")
    batch = batch_of(stored(policy, PAIRS), method)
    live = preference_step(policy, batch, method=method, reference=running(reference))
    assert abs(live.metrics["kl/chosen"]) > 1e-3
    assert preference_step(policy, batch, method=method).metrics["kl/chosen"] == pytest.approx(0, abs=1e-5)


def test_docstring_examples():
    results = doctest.testmod(sepo.training.float_columns)
    assert results.attempted > 0
    assert results.failed == 0


def test_log_probabilities_survive_an_engine_that_casts_floating_inputs(models):
    rows = stored(models[1], PAIRS)
    batch = batch_of(rows, resolve_method("dpo"))
    cast = {name: x.bfloat16() if x.is_floating_point() else x for name, x in batch.items()}
    found = batch_floats(cast, REF_LOGPS, missing="")
    at_responses = batch["labels"] != -100
    for index, side in enumerate(["chosen"] * 4 + ["rejected"] * 4):
        assert found[index, at_responses[index]].tolist() == rows[index % 4][f"{side}_ref_logps"]
    assert not found[~at_responses].any()


def test_log_probabilities_of_other_data_raise(models):
    rows = stored(models[1], PAIRS)
    rows[1]["rejected_ref_logps"] += [-1.0]
    with pytest.raises(SepoError, match=r"\d+ reference log-probabilities for a rejected response of \d+ tokens"):
        batch_of(rows, resolve_method("dpo"))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("dpo", "none was given; pass reference=, or collate its stored log-probabilities with ReferenceCollator"),
        ("tdpo2", "stored log-probabilities are not enough: it needs the whole distribution"),
    ],
)
def test_missing_references_raise(models, objective, message):
    policy, reference, _ = models
    method = resolve_method(objective)
    batch = collate(PAIRS, method) if objective == "dpo" else batch_of(stored(reference, PAIRS), method)
    with pytest.raises(SepoError, match=message):
        preference_step(policy, batch, method=method)
