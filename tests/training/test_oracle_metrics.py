"""Metrics of a policy as an oracle: values by a loop over rows, invariance, and where they are logged."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sepo.training.oracle_metrics
from sepo.objectives import available_objectives, resolve_method
from sepo.training.metrics import added, plain_numbers, plain_sums
from sepo.training.oracle_metrics import ORACLE_METRICS, oracle_metrics
from sepo.training.step import preference_step
from tests.support.steps import PAIRS, collate, running


def numbers(metrics):
    return plain_numbers(plain_sums(metrics))


def padded(chosen, rejected, extra=0):
    rows = [*chosen, *rejected]
    width = max(map(len, rows)) + extra
    values = torch.full((len(rows), width), float("nan"))
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, own in enumerate(rows):
        values[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), True
    return oracle_metrics(values, mask, pairs=len(chosen))


def slow(chosen, rejected):
    """One row at a time, in Python's numbers."""
    shares, sizes, tokens, margins, drifts = [], 0.0, 0, 0.0, 0.0
    for pair in zip(chosen, rejected, strict=True):
        for row in pair:
            ordered = sorted((abs(value) for value in row), reverse=True)
            kept = max(1, int(0.3 * len(row) + 1e-9))
            shares.append(sum(ordered[:kept]) / sum(ordered) if sum(ordered) else 0.3)
            sizes, tokens = sizes + sum(ordered), tokens + len(row)
        margins += sum(pair[0]) - sum(pair[1])
        drifts += abs(sum(pair[0]))
    return {
        "oracle/size": sizes / tokens,
        "oracle/concentration": sum(shares) / len(shares),
        "oracle/margin_per_size": margins / sizes if sizes else 0.0,
        "oracle/margin_per_drift": margins / drifts if drifts else 0.0,
    }


RESPONSE = st.lists(st.integers(-40, 40).map(lambda number: number / 8), min_size=1, max_size=12)


@given(st.lists(st.tuples(RESPONSE, RESPONSE), min_size=1, max_size=5), st.integers(0, 3))
def test_values_equal_those_of_a_loop_over_rows_whatever_the_padding_order_and_batches(pairs, extra):
    chosen, rejected = zip(*pairs, strict=True)
    expected = pytest.approx(slow(chosen, rejected), rel=1e-5, abs=1e-6)
    assert numbers(padded(chosen, rejected, extra)) == expected
    assert numbers(padded(chosen[::-1], rejected[::-1])) == expected
    parts = [padded([one], [other]) for one, other in pairs]
    whole = parts[0]
    for part in parts[1:]:
        whole = added(whole, part)
    assert numbers(whole) == expected


def test_an_oracle_that_moves_wrong_tokens_alone_has_the_largest_margin_per_size():
    finds = numbers(padded([[0.0] * 6], [[0.0, 0.0, -3.0, 0.0, 0.0, 0.0]]))
    falls = numbers(padded([[-1.0] * 6], [[-1.0, -1.0, -4.0, -1.0, -1.0, -1.0]]))
    assert (finds["oracle/margin_per_size"], finds["oracle/concentration"]) == (1.0, pytest.approx((0.3 + 1.0) / 2))
    assert falls["oracle/margin_per_size"] == pytest.approx(3 / 15)
    assert falls["oracle/concentration"] < finds["oracle/concentration"]


def test_a_policy_that_is_its_reference_has_finite_metrics():
    assert numbers(padded([[0.0] * 4], [[0.0] * 3])) == {
        "oracle/size": 0.0,
        "oracle/concentration": pytest.approx(0.3),
        "oracle/margin_per_size": 0.0,
        "oracle/margin_per_drift": 0.0,
    }


def test_methods_that_compare_all_tokens_with_a_reference_have_them():
    assert {name for name in available_objectives() if resolve_method(name).compares_all_tokens} >= {
        "dpo", "ipo", "hinge", "robust_dpo", "dpop", "minor_dpo", "dpo_reg",
    }  # fmt: skip
    for name in ("sepo", "selective_dpo", "simpo", "orpo", "d2po"):
        assert not resolve_method(name).compares_all_tokens, name


def test_a_step_has_them_in_evaluations_only(policy, reference):
    method = resolve_method("dpo")
    batch = collate(PAIRS, method)
    run = {"method": method, "reference": running(reference)}
    trained = preference_step(policy, batch, **run)
    assert not set(ORACLE_METRICS) & set(trained.metrics)
    evaluated = preference_step(policy, batch, **run, counted=len(PAIRS))
    assert set(ORACLE_METRICS) <= set(evaluated.metrics)
    margin = evaluated.metrics["rewards/margins"] / method.hyperparameters["beta"] * len(PAIRS)
    total, _ = evaluated.sums["oracle/margin_per_size"]
    assert total == pytest.approx(margin, rel=1e-4)
    part = preference_step(policy, batch, **run, counted=1)
    alone = preference_step(policy, collate(PAIRS[:1], method), **run, counted=1)
    for name in ORACLE_METRICS:
        assert part.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-4, abs=1e-6), name


def test_the_example_of_the_docstring():
    assert doctest.testmod(sepo.training.oracle_metrics).failed == 0
