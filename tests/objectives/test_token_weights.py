"""Token weights: identities with other objectives, compositions at random, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.objectives import (
    WEIGHTS,
    available_objectives,
    available_scorers,
    available_weights,
    compute_preference_loss,
    resolve_method,
    select,
    weigh,
)
from sepo.objectives.token_weights import Importance, ScoreWeight
from tests.objectives.test_properties import SIDES, inputs, make_batch, optimized, same


def losses(objective, batch, **hyperparameters):
    return compute_preference_loss(objective, **inputs(objective, batch), **hyperparameters).losses


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_of_one_are_dpo_bit_for_bit(seed, dtype):
    batch = make_batch(seed, dtype=dtype)
    dpo = losses("dpo", batch)
    for objective, neutral in (("d2po", {"decay": 1.0}), ("ld_dpo", {"alpha": 1.0}), ("tgdpo", {"alpha": 0.0})):
        assert torch.equal(losses(objective, batch, **neutral), dpo), objective
    assert torch.equal(losses("tis_dpo", batch, low=1.0, high=1.0), dpo)
    for side in SIDES:
        batch[f"{side}_scores"] = torch.full_like(batch[f"{side}_scores"], -1.0)  # 0 in [0, 1]
    assert torch.equal(losses("critical_dpo", batch), dpo)


def test_a_weight_of_zero_is_no_selection():
    """LD-DPO with alpha 0 is DPO over the first tokens of both responses, as many as the shorter one has."""
    batch = make_batch(seed=3)
    out = compute_preference_loss("ld_dpo", **batch, alpha=0.0)
    shorter = torch.minimum(*(batch[f"{side}_mask"].sum(-1) for side in SIDES))
    for side in SIDES:
        first = batch[f"{side}_mask"] & (batch[f"{side}_mask"].cumsum(-1) <= shorter[:, None])
        assert torch.equal(getattr(out, f"{side}_selection"), first)
        batch[f"{side}_mask"] = first
    same(out.losses, losses("dpo", batch))


def test_a_mean_is_over_the_weights():
    batch = make_batch(seed=4)
    out = compute_preference_loss("simpo", **batch, token_weight="position", position_decay=0.7)
    for side in SIDES:
        weights = 0.7 ** batch[f"{side}_mask"].cumsum(-1).double() * batch[f"{side}_mask"]
        mean = (weights * batch[f"policy_{side}_logps"]).sum(-1) / weights.sum(-1)
        same(getattr(out, f"{side}_rewards"), 2.0 * mean)
    for factor in (0.25, 4.0):  # only the proportions of the weights matter in a mean
        first, second = (
            compute_preference_loss("sepo", **{**batch, **scaled(batch, by)}, token_weight="scores",
                                    token_scorer="random", chosen_ratio=1.0, rejected_ratio=1.0).losses
            for by in (1.0, factor)
        )  # fmt: skip
        same(first, second)


def scaled(batch, factor):
    return {f"{side}_scores": factor * (batch[f"{side}_scores"] + 1.5) for side in SIDES}


def test_tis_dpo_at_the_ends_of_its_range():
    batch = make_batch(seed=5)
    batch |= {f"{side}_scores": 1e4 * batch[f"{side}_scores"] for side in SIDES}
    out = compute_preference_loss("tis_dpo", **batch)
    for side, sign in (("chosen", 1), ("rejected", -1)):
        positive = sign * batch[f"{side}_scores"] > 0
        expected = torch.where(positive, torch.tensor(1.3, dtype=torch.float64), 0.7) * batch[f"{side}_mask"]
        same(getattr(out, f"{side}_weights"), expected)


def test_sampo_takes_as_many_tokens_as_the_shorter_response_has():
    batch = make_batch(seed=6, pairs=20)
    out = compute_preference_loss("sampo", **batch)
    counts = [getattr(out, f"{side}_selection").sum(-1) for side in SIDES]
    assert torch.equal(*counts)
    assert torch.equal(counts[0], torch.minimum(*(batch[f"{side}_mask"].sum(-1) for side in SIDES)))


def confpo_twin(logps, mask):
    """ConfPO's rule: probability below the arithmetic mean of the response's."""
    kept = torch.zeros_like(mask)
    for row, counted in enumerate(mask):
        p = logps[row].double().exp()
        kept[row] = counted & (p < p[counted].mean())
    return kept


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_confpo_selects_what_a_twin_selects(seed, dtype):
    batch = make_batch(seed, dtype=dtype)
    out = compute_preference_loss("confpo", **batch)
    for side in SIDES:
        mask = batch[f"{side}_mask"]
        if mask.sum(-1).min() > 1:  # the twin's mean of one number can be rounded
            assert torch.equal(getattr(out, f"{side}_selection"), confpo_twin(batch[f"policy_{side}_logps"], mask))


def test_an_empty_pair_counts_in_the_mean_and_keeps_the_terms_over_the_whole_response():
    batch = make_batch(seed=7, pairs=4)
    batch["policy_rejected_logps"][1] = -1.0  # all probabilities are equal: none is below the mean
    out = compute_preference_loss("confpo", **batch)
    assert out.losses[1] == 0
    assert out.metrics["empty_pair"].tolist() == [0.0, 1.0, 0.0, 0.0]
    same(out.losses.mean(), out.losses[[0, 2, 3]].sum() / 4)
    nll = compute_preference_loss("confpo", **batch, pref_ftx=0.5)
    same(nll.losses, out.losses + 0.5 * nll.metrics["nll_response"])
    treg = compute_preference_loss("confpo", **batch, treg_alpha=0.5, treg_weighting="static")
    assert treg.losses[1] == 0
    assert (treg.losses[[0, 2, 3]] != out.losses[[0, 2, 3]]).all()


RULES = ("floor", "quantile", "mean")


@st.composite
def compositions(draw):
    """Draw an objective with a scorer, a selector and a weight that do not contradict each other."""
    objective = draw(st.sampled_from(available_objectives()))
    chosen = {"token_scorer": draw(st.sampled_from(available_scorers()))}
    chosen["token_weight"] = draw(st.sampled_from(available_weights()))
    if chosen["token_scorer"] != "none":
        chosen["count"] = draw(st.sampled_from(["ratio", "shorter"]))
        chosen["rule"] = "floor" if chosen["count"] == "shorter" else draw(st.sampled_from(RULES))
        if chosen["count"] == "ratio" and chosen["rule"] != "mean":
            chosen |= {f"{side}_ratio": draw(st.floats(0.05, 1.0)) for side in SIDES}
    try:
        return objective, chosen, resolve_method(objective, **chosen)
    except SepoError as error:
        if any(part in str(error) for part in ("can be negative", "without a token scorer", "which needs scores from")):
            return None
        raise


@settings(max_examples=200, deadline=None)
@given(composition=compositions(), seed=st.integers(0, 2**31), padding=st.integers(0, 3))
def test_random_compositions(composition, seed, padding):
    """Padding, batch size and masked values do not matter; tokens of weight 0 have no gradient."""
    if composition is None:
        return
    objective, hyperparameters, method = composition
    batch = make_batch(seed)
    for side in SIDES:  # in [0, 1], as weights from scores require
        batch[f"{side}_scores"] = (batch[f"{side}_scores"] + 1.001) / 2.002
    leaves = {f"policy_{side}_logps": batch[f"policy_{side}_logps"].requires_grad_() for side in SIDES}
    out = compute_preference_loss(objective, **batch, **hyperparameters)
    assert torch.isfinite(out.losses).all()
    for side, gradient in zip(SIDES, torch.autograd.grad(out.losses.sum(), list(leaves.values())), strict=True):
        assert torch.isfinite(gradient).all()
        assert (gradient[~getattr(out, f"{side}_selection")] == 0).all()
        weights = getattr(out, f"{side}_weights")
        assert (weights is None) == (method.token_weight is None)
        assert weights is None or torch.equal(weights != 0, getattr(out, f"{side}_selection"))
    padded = {}
    for name, tensor in batch.items():
        junk = False if name.endswith("_mask") else 0 if name.endswith("_steps") else math.nan
        side = "chosen" if "chosen" in name else "rejected"
        if name.endswith("_counts"):
            padded[name] = tensor
            continue
        outside, around = ~batch[f"{side}_mask"], (padding, padding)
        if name.endswith("_states"):
            outside, around = outside.unsqueeze(-1), (0, 0, *around)
        if junk is not False:
            tensor = tensor.detach().masked_fill(outside, junk)
        padded[name] = torch.nn.functional.pad(tensor, around, value=junk)
    same(compute_preference_loss(objective, **padded, **hyperparameters).losses, out.losses)
    alone = compute_preference_loss(objective, **{name: value[1:2] for name, value in batch.items()}, **hyperparameters)
    same(alone.losses, out.losses[1:2])


def test_weights_are_known_before_the_forward_pass_unless_scores_are_live():
    for objective, weight, scorer in (("d2po", None, None), ("sepo", "importance", None), ("dpo", "length", "file")):
        named = {"token_weight": weight, "token_scorer": scorer}
        method = resolve_method(objective, **{name: value for name, value in named.items() if value})
        batch = make_batch(seed=9)
        masks = {f"{side}_mask": batch[f"{side}_mask"] for side in SIDES}
        scores = {f"{side}_scores": batch[f"{side}_scores"] for side in SIDES}
        chosen, rejected = select(method, **masks, **scores)
        weights = weigh(method, **masks, chosen_selection=chosen, rejected_selection=rejected, **scores)
        out = compute_preference_loss(objective, **batch, **{name: value for name, value in named.items() if value})
        for found, side in zip(weights, SIDES, strict=True):
            assert torch.equal(found, optimized(out)[f"{side}_weights"])


@pytest.mark.parametrize(
    ("objective", "hyperparameters", "message"),
    [
        ("simpo", {"token_weight": "reward", "token_scorer": "oracle"}, "a mean over token weights that can be neg"),
        ("sepo", {"token_weight": "scores"}, "a mean over token weights that can be negative"),
        ("wpo", {"token_weight": "reward", "token_scorer": "oracle"}, "a mean over token weights that can be negative"),
        ({"dpo": 1, "orpo": 1}, {"token_weight": "reward", "token_scorer": "oracle"}, "weights that can be negative"),
        ("dpo", {"token_weight": "reward"}, "weighs tokens by their scores .* without a token scorer"),
        ("critical_dpo", {"token_scorer": "oracle"}, "needs scores from 0 to 1, found token scorer 'oracle'"),
        ("tgdpo", {"token_scorer": "none"}, "weighs tokens by their scores .* without a token scorer"),
        ("dpo", {"token_weight": "postion"}, "token_weight is 'postion', expected .*Did you mean 'position'"),
        ("d2po", {"decay": 0.0}, r"decay of objective 'd2po' is 0.0, expected a number in \(0, 1\]"),
        ("d2po", {"token_weight": "none", "decay": 0.5}, "a setting of token_weight position, and token_weight is n"),
        ("ld_dpo", {"alpha": 1.5}, r"expected a number in \[0, 1\]"),
        ("dpo", {"position_decay": 0.5}, "has no hyperparameter 'position_decay'"),
        ("tis_dpo", {"low": 1.4}, "low = 1.4 and high = 1.3, expected low <= high"),
        ("confpo", {"chosen_ratio": 0.5}, "but rule mean sets the number of selected tokens"),
        ("sampo", {"rejected_ratio": 0.5}, "but count shorter sets the number of selected tokens"),
        ("confpo", {"unit": "span"}, "rule 'mean' requires unit 'token'"),
        ("sampo", {"scope": "pair"}, "count 'shorter' requires rule 'floor' and scope 'response'"),
        ("sampo", {"rule": "quantile"}, "count 'shorter' requires rule 'floor'"),
        ({"dpo": 0.8, "sepoo": 0.2}, {}, "unknown objective 'sepoo'"),
        ({"dpo": -0.8}, {}, "the factor of objective dpo is -0.8, expected a number"),
        ({"sft": 1.0}, {}, "expected at least one objective besides sft"),
        ({}, {}, "a sum of objectives has nothing"),
        ({"sepo": 0.5, "selective_dpo": 0.5}, {}, "different defaults of token_scorer: oracle .sepo., policy_ref"),
        ({"dpo": 0.5, "d2po": 0.5}, {}, "different defaults of token_weight: none .dpo., position .d2po."),
        (
            {"tis_dpo": 1, "sepo": 1},
            {"token_weight": "importance", "token_scorer": "random"},
            "different defaults of the selection",
        ),
        ({"dpo": 0.5, "simpo": 0.5}, {"lambda": 1.0}, "no objective of dpo.simpo has the hyperparameter 'lambda'"),
        ({"dpo": 0.5, "simpo": 0.5}, {"treg_alpha": 1.0}, "add dpo_reg or simpo_reg"),
        ({"dpo": 0.5, "simpo": 0.5}, {"pref_ftx": -1.0}, "pref_ftx is -1.0, expected a number"),
    ],
)  # fmt: skip
def test_refusals(objective, hyperparameters, message):
    with pytest.raises(SepoError, match=message):
        resolve_method(objective, **hyperparameters)


def test_weights_that_cannot_be_used_name_their_row():
    batch = make_batch(seed=10)

    def refused(message, objective, **changes):
        hyperparameters = {name: changes.pop(name) for name in ("token_weight", "token_scorer") if name in changes}
        with pytest.raises(SepoError, match=message):
            compute_preference_loss(objective, **batch | changes, **hyperparameters)

    ones = {f"{side}_mask": torch.ones_like(batch[f"{side}_mask"]) for side in SIDES}
    scores = torch.full_like(batch["rejected_scores"], 0.5)
    scores[2, 1] = 1.5
    refused(r"rejected response in row 2 has the score 1.5 at position 1, expected .* in \[0, 1\]", "critical_dpo",
            rejected_scores=scores, **ones)  # fmt: skip
    negative = batch["chosen_scores"].abs()
    negative[1, 3] = -0.5
    refused(r"chosen response in row 1 has the token weight -0.5 .* at position 3, expected .* at least 0, since",
            "simpo", token_weight="scores", token_scorer="random", chosen_scores=negative, **ones)  # fmt: skip
    nothing = {f"{side}_scores": torch.zeros_like(batch[f"{side}_scores"]) for side in SIDES}
    refused("weights of the chosen response in row 0 are all 0, and simpo", "simpo", token_weight="scores",
            token_scorer="random", **nothing)  # fmt: skip
    out = compute_preference_loss("dpo", **batch | nothing, token_weight="scores", token_scorer="file")
    same(out.losses, torch.full_like(out.losses, math.log(2)))  # sums over nothing


def test_the_weight_rules_build_their_defaults():
    assert " ".join(available_weights()) == "none position length reward importance critical scores transport"
    assert [name for name, rule in WEIGHTS.items() if not rule.reads_scores] == ["position", "length", "transport"]
    method = resolve_method("minor_dpo", token_weight="importance", token_scorer="oracle", importance_high=2.0)
    assert method.token_weight == Importance(clip=1.5, low=0.7, high=2.0)
    assert (method.selector.chosen_ratio, method.selector.rejected_ratio) == (1.0, 1.0)
    assert resolve_method("sepo", token_weight="importance").selector.chosen_ratio == 0.3  # the objective's own
    assert resolve_method("dpo", token_weight="scores", token_scorer="file").token_weight == ScoreWeight()


def test_a_sum_is_the_sum_of_its_objectives():
    batch = make_batch(seed=11)
    out = compute_preference_loss({"dpo": 0.8, "orpo": 0.2, "sft": 0.1}, **batch)
    mask = batch["chosen_mask"]
    nll = -(batch["policy_chosen_logps"] * mask).sum(-1) / mask.sum(-1)
    dpo, orpo = losses("dpo", batch), losses("orpo", batch)
    same(out.losses, 0.8 * dpo + 0.2 * orpo + 0.1 * nll)
    same(out.metrics["dpo_loss"], dpo)
    same(out.metrics["orpo_loss"], orpo)
    same(out.metrics["sft_loss"], nll)
    same(out.chosen_rewards, compute_preference_loss("dpo", **batch).chosen_rewards)
    weighed = compute_preference_loss({"tgdpo": 1.0, "sft": 0.1}, **batch)  # the likelihood has no token weights
    same(weighed.losses, losses("tgdpo", batch) + 0.1 * nll)
    same(compute_preference_loss({"dpo": 0.8, "orpo": 0.2, "sft": 0.04}, **batch, pref_ftx=0.06).losses, out.losses)
    alone = compute_preference_loss({"dpo": 0.5}, **batch)
    same(alone.losses, 0.5 * dpo)
    assert dict(resolve_method({"dpo": 0.5}).factors) == {"dpo": 0.5}
    assert not resolve_method({"dpo": 1.0}).factors
    again = compute_preference_loss({"sft": 0.1, "orpo": 0.2, "dpo": 0.8}, **batch)
    same(again.losses, out.losses)


def test_a_sum_has_one_selection_and_weight():
    batch = make_batch(seed=12)
    out = compute_preference_loss({"dpo": 0.5, "sepo": 2.0}, **batch, chosen_ratio=0.6)
    selection = {"token_scorer": "oracle", "chosen_ratio": 0.6}
    same(out.losses, 0.5 * losses("dpo", batch, **selection) + 2.0 * losses("sepo", batch, chosen_ratio=0.6))
    out = compute_preference_loss({"dpo": 0.5, "hinge": 1.0}, **batch, token_weight="scores", token_scorer="oracle")
    weighed = {"token_weight": "scores", "token_scorer": "oracle"}
    same(out.losses, 0.5 * losses("dpo", batch, **weighed) + losses("hinge", batch, **weighed))
    assert torch.equal(out.chosen_selection, batch["chosen_mask"])


def test_hyperparameters_of_a_sum():
    batch = make_batch(seed=13)
    both = compute_preference_loss({"dpo": 1.0, "simpo": 1.0}, **batch, beta=0.5, **{"simpo.beta": 3.0})
    same(both.losses, losses("dpo", batch, beta=0.5) + losses("simpo", batch, beta=3.0))
    method = resolve_method({"d2po": 0.5, "ipo": 0.5}, token_weight="position", decay=0.9, **{"ipo.average": False})
    assert dict(method.hyperparameters) == {
        "d2po.beta": 0.1, "ipo.beta": 0.1, "ipo.average": False, "decay": 0.9, "token_weight": "position",
    }  # fmt: skip
    assert method.name == "d2po+ipo"
    assert method.token_weight == resolve_method("d2po", decay=0.9).token_weight
