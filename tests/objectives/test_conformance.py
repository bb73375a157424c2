"""Golden values of golden/README.md, and values worked by hand."""

import json
import lzma
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from sepo.objectives import available_objectives, compute_preference_loss

GOLDEN = Path(__file__).with_name("golden")
WITHOUT_GOLDEN = {"sampo", "critical_dpo"}
"""Objectives whose values are worked by hand below."""
TENSORS = {
    "policy_chosen_logps": "pw",
    "policy_rejected_logps": "pl",
    "ref_chosen_logps": "rw",
    "ref_rejected_logps": "rl",
    "chosen_scores": "sw",
    "rejected_scores": "sl",
    "chosen_token_rewards": "tw",
    "rejected_token_rewards": "tl",
    "chosen_kl": "kw",
    "rejected_kl": "kl",
    "chosen_log_sum_p2": "qw",
    "rejected_log_sum_p2": "ql",
    "chosen_states": "hw",
    "rejected_states": "hl",
}


@pytest.fixture(scope="module")
def rows():
    files = ("objectives", "weighted_objectives", "transport_objectives")
    return [row for name in files for row in json.loads(lzma.decompress((GOLDEN / f"{name}.json.xz").read_bytes()))]


def run(row, dtype):
    tensors = {
        name: torch.tensor([row["inputs"][key]], dtype=dtype) for name, key in TENSORS.items() if key in row["inputs"]
    }
    chosen, rejected = tensors["policy_chosen_logps"], tensors["policy_rejected_logps"]
    out = compute_preference_loss(
        row["objective"],
        chosen_mask=torch.ones_like(chosen, dtype=torch.bool),
        rejected_mask=torch.ones_like(rejected, dtype=torch.bool),
        **tensors
        | {
            "policy_chosen_logps": chosen.requires_grad_(),
            "policy_rejected_logps": rejected.requires_grad_(),
        },
        **row["hyperparameters"],
    )
    return out, torch.autograd.grad(out.losses.sum(), (chosen, rejected))


def test_every_objective_has_golden_rows(rows):
    counts = Counter(row["objective"] for row in rows)
    assert set(counts) == set(available_objectives()) - WITHOUT_GOLDEN
    assert sum(counts.values()) == 288


@pytest.mark.parametrize("objective", sorted(set(available_objectives()) - WITHOUT_GOLDEN))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)], ids=["f64", "f32"])
def test_losses_and_gradients_match_the_golden_values(rows, objective, dtype, tolerance):
    for row in (row for row in rows if row["objective"] == objective):
        out, gradients = run(row, dtype)
        expected = torch.tensor([row["loss"]], dtype=dtype)
        torch.testing.assert_close(out.losses, expected, rtol=tolerance, atol=tolerance * 1e-2)
        for gradient, name in zip(gradients, ("grad_policy_chosen", "grad_policy_rejected"), strict=True):
            golden = torch.tensor([row[name]], dtype=dtype)
            torch.testing.assert_close(gradient, golden, rtol=1e-4 if dtype == torch.float32 else 1e-5, atol=1e-5)


def by_hand(objective, *, pw=(-1.0, -2.0, -4.0), pl=(-3.0, -0.5), **arguments):
    arguments = {
        name: torch.tensor([values]) if isinstance(values, tuple) else values for name, values in arguments.items()
    }
    return compute_preference_loss(
        objective,
        policy_chosen_logps=torch.tensor([pw]),
        policy_rejected_logps=torch.tensor([pl]),
        chosen_mask=torch.ones(1, len(pw), dtype=torch.bool),
        rejected_mask=torch.ones(1, len(pl), dtype=torch.bool),
        **arguments,
    )


def minus_log_sigmoid(x):
    return math.log1p(math.exp(-x))


def test_sepo_by_hand():
    """Chosen keeps floor(0.7 * 3) = 2 highest scores, rejected max(1, floor(0.3 * 2)) = 1 lowest."""
    out = by_hand(
        "sepo",
        gamma=2.0,
        chosen_ratio=0.7,
        chosen_scores=(0.3, -0.1, 0.3),
        rejected_scores=(0.2, -5.0),
    )
    assert out.chosen_selection.tolist() == [[True, False, True]]
    assert out.rejected_selection.tolist() == [[False, True]]
    # means -2.5 and -0.5, times gamma
    assert out.chosen_rewards.item() == pytest.approx(-5.0)
    assert out.rejected_rewards.item() == pytest.approx(-1.0)
    assert out.losses.item() == pytest.approx(minus_log_sigmoid(-4.0))


def test_selective_dpo_by_hand():
    """Eq. 6: chosen scores ref - policy = (-1, 1, 2), rejected policy - ref = (-2, 0.5); both keep the highest."""
    out = by_hand(
        "selective_dpo",
        beta=0.5,
        ref_chosen_logps=(-2.0, -1.0, -2.0),
        ref_rejected_logps=(-1.0, -1.0),
    )
    assert out.chosen_selection.tolist() == [[False, False, True]]
    assert out.rejected_selection.tolist() == [[False, True]]
    assert out.losses.item() == pytest.approx(minus_log_sigmoid(0.5 * (-2.0 - 0.5)))


REFERENCE = {"ref_chosen_logps": (-2.0, -2.0, -2.0), "ref_rejected_logps": (-1.0, -1.0)}  # r_w = -1, r_l = -1.5


@pytest.mark.parametrize(
    ("objective", "arguments", "loss"),
    [
        ("dpo", {}, minus_log_sigmoid(0.05)),
        ("ipo", {"average": False}, (0.5 - 5.0) ** 2),
        ("hinge", {}, 1 - 0.05),
        ("dpop", {"dpop_lambda": 2.0}, minus_log_sigmoid(0.1 * (-1 - 2 + 1.5))),
        ("minor_dpo", {}, minus_log_sigmoid(-0.1)),
        ("tdpo1", {"chosen_kl": (1.0, 2.0, 3.0), "rejected_kl": (4.0, 5.0)}, minus_log_sigmoid(0.1 * (0.5 - 3.0))),
        ("wpo", {"chosen_log_sum_p2": (-1.0,) * 3, "rejected_log_sum_p2": (-0.75,) * 2}, None),
    ],
)
def test_objectives_with_a_reference_by_hand(objective, arguments, loss):
    out = by_hand(objective, **REFERENCE, **arguments)
    if objective == "wpo":  # a_w = -7/3 + 1, a_l = -1.75 + 0.75
        loss = math.exp(-4 / 3 - 1) * minus_log_sigmoid(0.05)
    assert out.losses.item() == pytest.approx(loss, rel=1e-5)
    if objective == "minor_dpo":
        assert out.rejected_rewards.item() == 0.0
        assert out.metrics["rejected_clamped"].tolist() == [1.0]
    if objective == "dpop":
        assert out.chosen_rewards.item() == pytest.approx(-0.3)
        assert out.metrics["chosen_penalised"].tolist() == [1.0]


def test_treg_by_hand():
    """w = sigmoid(-beta D), L_reg = -beta sum r_hat log pi (T-REG Eq. 1 and 2)."""
    out = by_hand(
        "dpo_reg", alpha=0.5, **REFERENCE, chosen_token_rewards=(0.5, 0.0, -0.5), rejected_token_rewards=(0.0, 0.2)
    )
    weight = 1 / (1 + math.exp(0.05))
    added = -0.5 * weight * 0.1 * ((-0.5 + 2.0) - 0.1)
    assert out.losses.item() == pytest.approx(minus_log_sigmoid(0.05) + added)
    assert out.metrics["treg_weight"].item() == pytest.approx(weight)
    share = abs(added) / (abs(added) + minus_log_sigmoid(0.05))
    assert out.metrics["regularizer_share"].item() == pytest.approx(share)


def test_confpo_by_hand():
    """p = (0.6, 0.1, 0.5) has mean 0.4: only 0.1 is below it; (0.8, 0.2) keeps 0.2."""
    out = by_hand("confpo", pw=tuple(map(math.log, (0.6, 0.1, 0.5))), pl=tuple(map(math.log, (0.8, 0.2))))
    assert out.chosen_selection.tolist() == [[False, True, False]]
    assert out.rejected_selection.tolist() == [[False, True]]
    assert out.losses.item() == pytest.approx(minus_log_sigmoid(1.5 * (math.log(0.1) - math.log(0.2)) - 1.6))
    assert out.metrics["empty_pair"].tolist() == [0.0]


@pytest.mark.parametrize("pl", [(-0.7,), (-0.7, -0.7, -0.7)])
def test_a_pair_without_tokens_below_the_mean_has_loss_zero(pl):
    """No probability of a response is below the mean if all are equal; the pair still counts."""
    chosen = torch.tensor([[-1.0, -2.0, -4.0]], requires_grad=True)
    rejected = torch.tensor([pl], requires_grad=True)
    out = compute_preference_loss(
        "confpo", policy_chosen_logps=chosen, policy_rejected_logps=rejected,
        chosen_mask=torch.ones_like(chosen).bool(), rejected_mask=torch.ones_like(rejected).bool(),
    )  # fmt: skip
    assert out.losses.tolist() == [0.0]
    assert out.metrics["empty_pair"].tolist() == [1.0]
    assert out.chosen_rewards.tolist() == out.rejected_rewards.tolist() == [0.0]
    for gradient in torch.autograd.grad(out.losses.sum(), (chosen, rejected)):
        assert (gradient == 0).all()


SCORES = {"chosen_scores": (0.25, 0.5, 1.0), "rejected_scores": (0.75, 0.0)}


def test_critical_dpo_by_hand():
    """Log-ratios (1, 0, -2) with weight 1 each, and (-2, 0.5) with weights 1 - s = (0.25, 1)."""
    out = by_hand("critical_dpo", **REFERENCE, **SCORES)
    assert out.chosen_weights.tolist() == [[1.0, 1.0, 1.0]]
    assert out.rejected_weights.tolist() == [[0.25, 1.0]]
    assert out.losses.item() == pytest.approx(minus_log_sigmoid(0.1 * (-1.0 - (-0.5 + 0.5))), rel=1e-6)


def test_sampo_by_hand():
    """Two tokens of each response, as many as the shorter one has: the highest chosen scores, 0.5 and 1."""
    out = by_hand("sampo", **REFERENCE, **SCORES)
    assert out.chosen_selection.tolist() == [[False, True, True]]
    assert out.rejected_selection.tolist() == [[True, True]]
    assert out.losses.item() == pytest.approx(minus_log_sigmoid(0.1 * ((0.0 - 2.0) - (-1.5))), rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "chosen", "rejected"),
    [
        ("d2po", [0.98, 0.98**2, 0.98**3], [0.98, 0.98**2]),
        ("ld_dpo", [1.0, 1.0, 0.5], [1.0, 1.0]),
        ("tgdpo", [1 + 0.05 * s for s in (0.25, 0.5, 1.0)], [1 - 0.05 * s for s in (0.75, 0.0)]),
        ("tis_dpo", [1.05, 1.1, 1.2], [0.85, 1.0]),
    ],
)
def test_weights_by_hand(objective, chosen, rejected):
    out = by_hand(objective, **REFERENCE, **SCORES)
    torch.testing.assert_close(out.chosen_weights, torch.tensor([chosen]))
    torch.testing.assert_close(out.rejected_weights, torch.tensor([rejected]))
    ratios = [(1.0, 0.0, -2.0), (-2.0, 0.5)]
    sums = [sum(w * r for w, r in zip(*side, strict=True)) for side in zip((chosen, rejected), ratios, strict=True)]
    assert out.losses.item() == pytest.approx(minus_log_sigmoid(0.1 * (sums[0] - sums[1])), rel=1e-5)
