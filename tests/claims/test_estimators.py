"""benchmarks/claims: measures against their slow twins, estimators by hand, statistics, and which setting is chosen."""

import math

import pytest
import torch
from claims.credit_tables import estimator_rows, policy_rows
from claims.estimators import ESTIMATORS, PLAIN, SURPRISAL, estimated, members
from claims.kept import Kept
from claims.measures import agreement, auroc, concentration, first_error, proxies
from claims.methods_study import damaged
from claims.paired import difference, over_seeds
from claims.policies import known_credit
from claims.proxies import correlations
from claims.world import Pairs

from sepo.credit import measures as slow
from sepo.errors import SepoError

WRONG = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


def test_measures_of_credit_are_those_of_the_package():
    scores = torch.randint(4, (200, 5), generator=torch.Generator().manual_seed(0)).float()  # with ties
    wrong = WRONG.repeat(50, 1)
    both = [row for row in range(200) if wrong[row].any() and not wrong[row].all()]
    expected = [slow.auroc(scores[row].numpy(), wrong[row].numpy()) for row in both]
    assert auroc(scores, wrong) == pytest.approx(sum(expected) / len(expected))
    some = [row for row in range(200) if wrong[row].any()]
    expected = [slow.first_error(scores[row].numpy(), wrong[row].numpy()) for row in some]
    assert first_error(scores, wrong) == pytest.approx(sum(expected) / len(expected))


def test_proxies_of_two_pairs_worked_by_hand():
    scores = torch.tensor([[[1.0, 1.0], [0.0, -2.0]], [[0.0, 1.0], [3.0, 0.0]]])  # margins 4 and -2
    found = proxies(scores, torch.tensor([1.0, -1.0]), beta=0.5)  # the second label is flipped: 4 and 2
    assert found["preference_accuracy"] == 1.0
    assert proxies(scores, torch.ones(2))["preference_accuracy"] == 0.5
    assert found["margin"] == 3.0
    assert found["dpo_loss"] == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
    assert found["drift"] == pytest.approx((1.0 + 1.5) / 2)  # of the labelled chosen response: the second's is (3, 0)
    assert found["size"] == 1.0


def test_concentration_and_agreement_worked_by_hand():
    scores = torch.tensor([[[-6.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]]])  # 1 of 4 tokens: 6/8 and 2/8
    assert concentration(scores) == 0.5
    assert agreement(scores[:, :1], scores[:, :1] * 7 + 1) == pytest.approx(1)
    assert agreement(scores[:, :1].argsort().float(), -scores[:, :1].argsort().float()) == pytest.approx(-1)


def test_every_estimator_combines_the_scores_of_its_members():
    generator = torch.Generator().manual_seed(0)
    scores = {member: torch.randn(2, 3, 2, 4, generator=generator) for member in members()}
    checkpoints = [torch.ones(2, 3, 2, 4), 3 * torch.ones(2, 3, 2, 4)]

    def found(name):
        return estimated(name, scores, checkpoints)

    assert torch.equal(found(PLAIN), scores["dpo", 0])
    assert torch.equal(found("DPO - reversed DPO"), scores["dpo", 0] - scores["reversed dpo", 0])
    torch.testing.assert_close(found("mean of 8 DPO"), sum(scores["dpo", order] for order in range(8)) / 8)
    expected = sum(scores["sft, chosen", order] - scores["sft, rejected", order] for order in range(4)) / 4
    torch.testing.assert_close(found("mean of 4 (SFT on chosen - SFT on rejected)"), expected)
    assert torch.equal(found("mean over checkpoints of DPO"), 2 * torch.ones(2, 3, 2, 4))
    assert all(found(name).shape == (2, 3, 2, 4) for name in ESTIMATORS)


def test_the_setting_is_chosen_on_validation_pairs_and_reported_on_held_out_ones():
    def own(validation, held_out):
        return {"validation": [validation] * 2, "held_out": held_out, "first_error": [0.5, 0.5]}

    cells = [
        {"rate": 1e-4, "epochs": 2, "estimators": {PLAIN: own(0.7, [0.6, 0.7]), "IPO oracle": own(0.6, [0.9, 0.9])}},
        {"rate": 1e-3, "epochs": 2, "estimators": {PLAIN: own(0.6, [0.9, 0.9]), "IPO oracle": own(0.8, [0.7, 0.9])}},
    ]
    rows = estimator_rows(cells, {SURPRISAL: own(0.5, [0.5, 0.6])})
    assert (rows[PLAIN]["rate"], rows[PLAIN]["auroc"]["mean"], rows[PLAIN]["comparisons"]) == (1e-4, 0.65, 2)
    assert rows["IPO oracle"]["minus_plain"] == difference([0.7, 0.9], [0.6, 0.7])
    assert rows["IPO oracle"]["minus_surprisal"]["mean"] == 0.25
    assert rows[PLAIN]["minus_plain"] is rows[SURPRISAL]["minus_surprisal"] is None


def test_policies_are_compared_with_the_plain_oracle_of_the_same_objective():
    found = {
        name: {"rate": 1e-4, "held_out": held_out, "validation": {}}
        for name, held_out in {"A, plain oracle": [0.1, 0.2], "A, x": [0.3, 0.3], "B, x": [0.5, 0.5]}.items()
    }
    rows = policy_rows(found, 6)
    assert rows["A, x"]["minus_plain"] == difference([0.3, 0.3], [0.1, 0.2])
    assert rows["A, plain oracle"]["minus_plain"] is rows["B, x"]["minus_plain"] is None


def test_intervals_are_students():
    assert over_seeds([1.0, 2.0, 3.0]) == {"mean": 2.0, "low": -0.4841, "high": 4.4841}  # t(2) = 4.3027, sd 1
    assert over_seeds([0.5]) == {"mean": 0.5, "low": None, "high": None}


def test_correlations_are_within_seeds():
    """Between seeds the proxy is misleading; within each it orders the oracles."""
    rows = [
        {
            "kind": "dpo",
            "seed": seed,
            "auroc": value + seed,
            "first_error": -value,
            "margin": value - 10 * seed,
            "size": 1,
        }
        for seed in (0, 1)
        for value in (0.1, 0.2, 0.3)
    ]
    found = correlations(rows)
    assert found["DPO oracles: auroc"]["margin"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "oracles": 3}
    assert found["DPO oracles: first_error"]["margin"]["mean"] == -1.0
    assert "size" not in found["DPO oracles: auroc"]


def test_damaged_credit_has_the_auroc_that_it_is_named_for():
    wrong = WRONG[:2].repeat(4000, 1)[:, None].expand(-1, 2, -1)
    pairs = Pairs(torch.zeros(8000, 1), wrong.long(), wrong)
    for level in (0.9, 0.6):
        assert auroc(damaged(pairs, level, 0)[:, 1], wrong[:, 1]) == pytest.approx(level, abs=0.01)
    assert auroc(known_credit(pairs, 0)[:, 1], wrong[:, 1]) == 1.0


def test_kept_parts_are_made_once_and_only_for_their_settings(tmp_path):
    made = []
    kept = Kept(tmp_path, {"a": 1})
    for _ in range(2):
        assert kept.part("p", lambda: made.append(1) or [1.5]) == [1.5]
        assert torch.equal(kept.tensor("t", lambda: made.append(1) or torch.ones(2)), torch.ones(2))
    assert len(made) == 2
    Kept(tmp_path, {"a": 1})
    with pytest.raises(SepoError, match="other settings"):
        Kept(tmp_path, {"a": 2})
