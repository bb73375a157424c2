"""Properties that hold for every objective."""

import copy
import math
import pickle
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.objectives import (
    SCORERS,
    ResponseReward,
    Selector,
    available_objectives,
    compute_preference_loss,
    preference_loss,
    resolve_method,
    select,
    state_weights,
    weigh,
)
from sepo.objectives.links import LARGEST_MEAN_LOGP, Hinge, Logistic, Odds, Rank, Square

OBJECTIVES = available_objectives()
# Compositions beyond the presets, with the same properties.
COMPOSITIONS = {
    "oracle minor_dpo": ("minor_dpo", {"token_scorer": "oracle"}),
    "oracle simpo": ("simpo", {"token_scorer": "oracle", "chosen_ratio": 0.5}),
    "oracle dpo_reg": ("dpo_reg", {"token_scorer": "oracle", "rule": "quantile"}),
    "oracle wpo": ("wpo", {"token_scorer": "oracle"}),
    "oracle tdpo2": ("tdpo2", {"token_scorer": "oracle"}),
    "oracle orpo": ("orpo", {"token_scorer": "oracle"}),
    "selective simpo with T-REG": ("simpo", {"token_scorer": "policy_ref", "treg_alpha": 0.25}),
    "sepo with T-REG": ("sepo", {"treg_alpha": 0.5, "treg_weighting": "static"}),
    "confident simpo": ("simpo", {"token_scorer": "confidence"}),
    "random minor_dpo": ("minor_dpo", {"token_scorer": "random"}),
    "sepo by spans": ("sepo", {"unit": "span", "span_tokens": 2}),
    "sepo by steps of a pair": ("sepo", {"unit": "step", "scope": "pair"}),
    "sepo over a data set": ("sepo", {"scope": "dataset"}),
    "selective_dpo by spans of a pair": ("selective_dpo", {"unit": "span", "scope": "pair"}),
    "confident dpo by steps": ("dpo", {"token_scorer": "confidence", "unit": "step"}),
    "hinge with T-REG": ("hinge", {"treg_alpha": 0.5}),
    "oracle d2po": ("d2po", {"token_scorer": "oracle", "chosen_ratio": 0.5}),
    "oracle sepo by position": ("sepo", {"token_weight": "position", "position_decay": 0.5}),
    "importance-weighted simpo": ("simpo", {"token_weight": "importance", "token_scorer": "oracle"}),
    "importance-weighted wpo": ("wpo", {"token_weight": "importance", "token_scorer": "policy_ref"}),
    "reward-weighted tdpo2": ("tdpo2", {"token_weight": "reward", "token_scorer": "oracle", "reward_alpha": 2.0}),
    "length-weighted orpo": ("orpo", {"token_weight": "length", "length_alpha": 0.0}),
    "length-weighted dpo_reg": ("dpo_reg", {"token_weight": "length"}),
    "minor_dpo weighed by its scores": ("minor_dpo", {"token_weight": "scores", "token_scorer": "oracle"}),
    "dpo weighed by confidence": ("dpo", {"token_weight": "scores", "token_scorer": "confidence"}),
    "confpo by position": ("confpo", {"token_weight": "position"}),
    "mean rule dpo": ("dpo", {"token_scorer": "oracle", "rule": "mean"}),
    "mean rule dpo_reg": ("dpo_reg", {"token_scorer": "policy_ref", "rule": "mean"}),
    "shorter sepo by spans": ("sepo", {"count": "shorter", "unit": "span"}),
    "sum of dpo and orpo": ({"dpo": 0.8, "orpo": 0.2}, {}),
    "sum with sft": ({"sft": 0.1, "simpo": 0.5}, {}),
    "sum over selected tokens": ({"sepo": 1.0, "minor_dpo": 0.5, "tdpo1": 0.25}, {"chosen_ratio": 0.5}),
    "oracle otpo": ("otpo", {"token_scorer": "oracle", "chosen_ratio": 0.5, "reg": 0.1}),
    "otpo over the least likely tokens": ("otpo", {"token_scorer": "confidence", "chosen_ratio": 0.6}),
    "simpo weighed by transport": (
        "simpo",
        {"token_weight": "transport", "transport_reg": 0.05, "transport_reg_m": 1.0},
    ),
    "sum with weights": ({"d2po": 0.5, "ipo": 0.1}, {"token_weight": "position", "decay": 0.9}),
}
CASES = {name: (name, {}) for name in OBJECTIVES} | COMPOSITIONS
LOGISTIC_WITH_REFERENCE = ("dpo", "robust_dpo", "dpop", "minor_dpo", "selective_dpo", "tdpo1", "tdpo2", "wpo")
SIDES = ("chosen", "rejected")
KINDS = ("policy_{}_logps", "ref_{}_logps", "{}_scores", "{}_token_rewards", "{}_kl", "{}_log_sum_p2", "{}_states")

SELECTING = ("_mask", "_scores", "_steps", "_counts")
"""Inputs of a selection that the loss does not read."""

BEFORE_THE_LOSS = (*SELECTING, "_states")
"""Inputs of selections and weights that the loss does not read."""

every_case = pytest.mark.parametrize("case", CASES)


def make_batch(seed=0, pairs=3, widths=(7, 5), dtype=torch.float64):
    """Return random inputs, with masked positions at all places of a response."""
    generator, others = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)

    def uniform(low, high, width):
        return torch.rand(pairs, width, generator=generator, dtype=torch.float64).mul(high - low).add(low).to(dtype)

    batch = {}
    for side, width in zip(SIDES, widths, strict=True):
        mask = torch.rand(pairs, width, generator=generator) < 0.7
        mask[torch.arange(pairs), torch.randint(width, (pairs,), generator=generator)] = True
        batch[f"{side}_mask"] = mask
        batch[f"policy_{side}_logps"] = uniform(-3, -0.05, width)
        batch[f"ref_{side}_logps"] = uniform(-3, -0.05, width)
        batch[f"{side}_scores"] = uniform(-1, 1, width)
        batch[f"{side}_token_rewards"] = uniform(-0.5, 0.5, width)
        batch[f"{side}_kl"] = uniform(0, 1, width)
        batch[f"{side}_log_sum_p2"] = uniform(-2, 0, width)
        batch[f"{side}_steps"] = torch.arange(width).expand(pairs, width) // 2
        batch[f"{side}_counts"] = torch.randint(1, 4, (pairs,), generator=generator)
        batch[f"{side}_states"] = torch.randn(pairs, width, 3, generator=others, dtype=torch.float64).to(dtype)
    return batch


def inputs(objective, batch):
    """Return the tensors of a batch for an objective; the one of scores in [0, 1] gets such in place of [-1, 1]."""
    if objective != "critical_dpo":
        return batch
    return {name: (tensor + 1) / 2 if name.endswith("_scores") else tensor for name, tensor in batch.items()}


def run(case, batch, **more):
    objective, hyperparameters = CASES[case]
    batch = inputs(objective, batch)
    return compute_preference_loss(objective, **batch, **hyperparameters, **more)


def optimized(out):
    """Return the selection and the weights of a loss as arguments of ``preference_loss``."""
    found = {f"{side}_selection": getattr(out, f"{side}_selection") for side in SIDES}
    return found | {f"{side}_weights": getattr(out, f"{side}_weights") for side in SIDES}


def policy_gradients(case, batch):
    """Return the output, and the gradients of the summed losses with respect to the policy's log-probabilities."""
    leaves = {f"policy_{side}_logps": batch[f"policy_{side}_logps"].clone().requires_grad_() for side in SIDES}
    out = run(case, batch | leaves)
    return out, torch.autograd.grad(out.losses.sum(), list(leaves.values()))


def same(first, second, **tolerance):
    torch.testing.assert_close(first, second, **({"rtol": 1e-12, "atol": 1e-12} | tolerance))


# --- invariances ---------------------------------------------------------------------------------------------


@every_case
@settings(max_examples=5)
@given(
    seed=st.integers(0, 2**31),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    junk=st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e30]),
)
def test_padding_changes_neither_values_nor_gradients(case, seed, extra, junk):
    batch = make_batch(seed)
    out, gradients = policy_gradients(case, batch)
    padded = {}
    for name, tensor in batch.items():
        if name.endswith("_counts"):
            padded[name] = tensor
        elif name.endswith(("_mask", "_steps")):
            padded[name] = torch.nn.functional.pad(tensor, extra)
        else:
            side = "chosen" if "chosen" in name else "rejected"
            outside, around = ~batch[f"{side}_mask"], extra
            if name.endswith("_states"):
                outside, around = outside.unsqueeze(-1), (0, 0, *extra)
            padded[name] = torch.nn.functional.pad(tensor.masked_fill(outside, junk), around, value=junk)
    again, padded_gradients = policy_gradients(case, padded)
    same(again.losses, out.losses)
    same(again.chosen_rewards, out.chosen_rewards)
    same(again.rejected_rewards, out.rejected_rewards)
    assert torch.equal(again.chosen_selection, torch.nn.functional.pad(out.chosen_selection, extra))
    for name in out.metrics:
        same(again.metrics[name], out.metrics[name])
    for gradient, padded_gradient in zip(gradients, padded_gradients, strict=True):
        same(padded_gradient, torch.nn.functional.pad(gradient, extra))


@every_case
def test_batch_order_and_batch_size_do_not_matter(case):
    batch = make_batch(pairs=4)
    out, gradients = policy_gradients(case, batch)
    order = torch.tensor([2, 0, 3, 1])
    shuffled, shuffled_gradients = policy_gradients(case, {name: tensor[order] for name, tensor in batch.items()})
    same(shuffled.losses, out.losses[order])
    for gradient, shuffled_gradient in zip(gradients, shuffled_gradients, strict=True):
        same(shuffled_gradient, gradient[order])
    for row in range(4):
        alone = run(case, {name: tensor[row : row + 1] for name, tensor in batch.items()})
        same(alone.losses, out.losses[row : row + 1])


@every_case
def test_masking_a_token_is_deleting_it(case):
    batch = make_batch(pairs=1)
    short = {}
    for name, tensor in batch.items():
        side = "chosen" if "chosen" in name else "rejected"
        short[name] = tensor if name.endswith("_counts") else tensor[batch[f"{side}_mask"]][None]
    same(run(case, short).losses, run(case, batch).losses)


@every_case
def test_unselected_tokens_get_no_gradient_and_may_have_any_value(case):
    objective, hyperparameters = CASES[case]
    method = resolve_method(objective, **hyperparameters)
    batch = make_batch(seed=3)
    out, gradients = policy_gradients(case, batch)
    selections = {"chosen": out.chosen_selection, "rejected": out.rejected_selection}
    for side, gradient in zip(SIDES, gradients, strict=True):
        assert not (selections[side] & ~batch[f"{side}_mask"]).any()
        reads_all = method.needs_response and side == "chosen"  # the likelihood of the whole chosen response
        assert reads_all or (gradient[~selections[side]] == 0).all()
    if method.needs_response:
        return

    for junk in (0.0, math.nan, 7.0):  # possible values of unselected positions after a partial forward pass
        filled = {}
        for name, tensor in batch.items():
            side = "chosen" if "chosen" in name else "rejected"
            if not name.endswith(BEFORE_THE_LOSS):
                filled[name] = tensor.masked_fill(~selections[side], junk).requires_grad_(name.startswith("policy"))
        partial = preference_loss(method, **optimized(out), **filled)
        same(partial.losses, out.losses)
        leaves = [filled[f"policy_{side}_logps"] for side in SIDES]
        for result, target in zip(torch.autograd.grad(partial.losses.sum(), leaves), gradients, strict=True):
            same(result, target)


@pytest.mark.parametrize("case", [name for name in CASES if resolve_method(CASES[name][0], **CASES[name][1]).selects])
def test_selection_before_the_forward_gives_the_same_loss(case):
    objective, hyperparameters = CASES[case]
    method = resolve_method(objective, **hyperparameters)
    batch = inputs(objective, make_batch(seed=5))
    scores = {name: tensor for name, tensor in batch.items() if name.endswith(SELECTING)}
    logps = {name: tensor for name, tensor in batch.items() if not name.endswith(BEFORE_THE_LOSS)}
    live = {} if method.needs_scores else {name: logps[name] for name in logps if name.endswith("_logps")}
    chosen, rejected = select(method, **scores, **live)
    selections = {"chosen_selection": chosen, "rejected_selection": rejected}
    masks = {f"{side}_mask": batch[f"{side}_mask"] for side in SIDES}
    stored = {f"{side}_scores": batch[f"{side}_scores"] for side in SIDES}
    states = {f"{side}_states": batch[f"{side}_states"] for side in SIDES}
    names = ("chosen_state_weights", "rejected_state_weights")
    stored |= dict(zip(names, state_weights(method, **states, **masks, **selections), strict=True))
    weights = dict(zip(("chosen_weights", "rejected_weights"), weigh(method, **masks, **stored, **selections, **live),
                       strict=True))  # fmt: skip
    out = preference_loss(method, **selections, **weights, **logps)
    same(out.losses, compute_preference_loss(objective, **hyperparameters, **batch).losses)
    assert method.needs_all_tokens != method.needs_scores
    assert chosen.sum() < batch["chosen_mask"].sum() or method.weighs_by_scores


@pytest.mark.parametrize(
    "objective", [name for name in OBJECTIVES if name != "sampo" and not resolve_method(name).weighs_by_scores]
)
@pytest.mark.parametrize("scorer", ["oracle", "policy_ref", "contrastive", "file", "random", "confidence"])
@pytest.mark.parametrize("rule", ["floor", "quantile"])
def test_ratio_one_is_no_selection(objective, scorer, rule):
    batch = make_batch(seed=1)
    full = compute_preference_loss(objective, **batch, token_scorer="none")
    assert torch.equal(full.chosen_selection, batch["chosen_mask"])
    ratios = {"chosen_ratio": 1.0, "rejected_ratio": 1.0}
    selected = compute_preference_loss(objective, **batch, token_scorer=scorer, rule=rule, **ratios)
    assert torch.equal(selected.chosen_selection, batch["chosen_mask"])
    assert torch.equal(selected.rejected_selection, batch["rejected_mask"])
    same(selected.losses, full.losses)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", LOGISTIC_WITH_REFERENCE)
def test_policy_equal_to_reference_gives_log_two(objective):
    batch = make_batch(seed=2)
    for side in SIDES:
        batch[f"ref_{side}_logps"] = batch[f"policy_{side}_logps"].clone()
        batch[f"{side}_kl"] = torch.zeros_like(batch[f"{side}_kl"])
        if objective == "wpo":  # a pair with probability 1 under the policy has weight 1
            batch[f"{side}_log_sum_p2"] = batch[f"policy_{side}_logps"].clone()
    out = compute_preference_loss(objective, **batch)
    same(out.losses, torch.full_like(out.losses, math.log(2.0)))


def test_related_objectives_coincide():
    batch = make_batch(seed=4)

    def losses(objective, **hyperparameters):
        return compute_preference_loss(objective, **batch, **hyperparameters).losses

    dpo = losses("dpo")
    same(losses("robust_dpo", label_smoothing=0.0), dpo)
    same(losses("dpop", dpop_lambda=0.0), dpo)
    same(losses("dpo_reg", alpha=0.0), dpo)
    same(losses("tdpo2", alpha=0.0), dpo)
    same(losses("tdpo2", alpha=1.0), losses("tdpo1"))
    same(losses("simpo_reg", alpha=0.0), losses("simpo"))
    same(losses("simpo", gamma=0.0, beta=1.5), losses("sepo", gamma=1.5, chosen_ratio=1.0, rejected_ratio=1.0))
    same(losses("selective_dpo", chosen_ratio=1.0, rejected_ratio=1.0, beta=0.1), dpo)
    same(losses("dpo", treg_alpha=0.25), losses("dpo_reg"))
    same(losses("simpo", treg_alpha=0.1, treg_weighting="static"), losses("simpo_reg", alpha=0.1, weighting="static"))
    same(losses("sepo"), losses("simpo", beta=1.0, gamma=0.0, token_scorer="oracle"))
    assert not torch.allclose(losses("tdpo1"), dpo)
    assert not torch.allclose(losses("dpo_reg"), dpo)


@pytest.mark.parametrize("objective", ["dpo", "hinge", "ipo", "simpo", "tdpo1"])
def test_swapping_chosen_and_rejected_negates_the_margin(objective):
    batch = make_batch(seed=6)
    other = {"chosen": "rejected", "rejected": "chosen"}
    swapped = {}
    for name, tensor in batch.items():
        side = "chosen" if "chosen" in name else "rejected"
        swapped[name.replace(side, other[side])] = tensor
    out, mirrored = compute_preference_loss(objective, **batch), compute_preference_loss(objective, **swapped)
    same(mirrored.chosen_rewards, out.rejected_rewards)
    same(mirrored.rejected_rewards, out.chosen_rewards)


@every_case
def test_rewards_are_the_terms_of_the_link(case):
    objective, hyperparameters = CASES[case]
    method = resolve_method(objective, **hyperparameters)
    batch = make_batch(seed=7)
    for name in batch:
        if name.startswith("policy"):
            batch[name].requires_grad_()
    out = run(case, batch)
    assert not out.chosen_rewards.requires_grad
    assert not out.rejected_rewards.requires_grad
    assert not any(metric.requires_grad for metric in out.metrics.values())
    assert all(metric.shape == out.losses.shape for metric in out.metrics.values())
    if method.added:
        return
    expected = method.link.loss(out.chosen_rewards - out.rejected_rewards)
    expected = expected * out.metrics.get("pair_weight", 1.0) + out.metrics.get("treg_loss", 0.0)
    weight = sum(term.weight for term in method.regularizers if hasattr(term, "over"))
    expected = expected * (1 - out.metrics.get("empty_pair", torch.zeros_like(expected)))
    same(out.losses.detach(), expected + weight * out.metrics.get("nll_selected", 0.0))


def test_pref_ftx_reads_all_chosen_tokens_regardless_of_the_selection():
    batch = make_batch(seed=8)
    plain, _ = policy_gradients("sepo", batch)
    CASES["sepo with pref_ftx"] = ("sepo", {"pref_ftx": 0.5})
    try:
        out, (chosen_gradient, rejected_gradient) = policy_gradients("sepo with pref_ftx", batch)
    finally:
        del CASES["sepo with pref_ftx"]
    mask = batch["chosen_mask"]
    nll = -(batch["policy_chosen_logps"] * mask).sum(-1) / mask.sum(-1)
    same(out.losses.detach(), plain.losses.detach() + 0.5 * nll)
    same(out.metrics["nll_response"], nll)
    assert (chosen_gradient[mask] != 0).all()
    assert (rejected_gradient[~out.rejected_selection] == 0).all()
    method = resolve_method("sepo", pref_ftx=0.5)
    assert method.needs_all_tokens
    logps = {name: tensor for name, tensor in batch.items() if name.startswith("policy")}
    selections = {"chosen_selection": out.chosen_selection, "rejected_selection": out.rejected_selection}
    with pytest.raises(ValueError, match="chosen_mask is missing"):
        preference_loss(method, **logps, **selections)


# --- gradients --------------------------------------------------------------------------------------------------------


@every_case
def test_gradcheck(case):
    """Numerical gradients, with the terms that the paper detaches (selection, weights) held fixed."""
    objective, hyperparameters = CASES[case]
    method = resolve_method(objective, **hyperparameters)
    batch = inputs(objective, make_batch(seed=9))
    base = compute_preference_loss(objective, **hyperparameters, **batch)
    fixed = {
        name: tensor for name, tensor in batch.items() if not name.endswith(BEFORE_THE_LOSS) or name.endswith("_mask")
    }
    scale = base.metrics.get("treg_weight", torch.ones_like(base.losses))
    pair_weight = base.metrics.get("pair_weight", torch.ones_like(base.losses))
    # The weights depend on the policy; freeze them by using the static form and applying them here.
    treg = tuple(term for term in method.regularizers if hasattr(term, "weighting"))
    kept = tuple(term for term in method.regularizers if not hasattr(term, "weighting"))
    main = replace(method, pair_weight=None, regularizers=kept)
    static = replace(main, regularizers=tuple(replace(term, weighting="static") for term in treg))

    def losses(chosen, rejected):
        tensors = fixed | {"policy_chosen_logps": chosen, "policy_rejected_logps": rejected}
        selections = optimized(base)
        plain = preference_loss(main, **tensors, **selections).losses
        if not treg:
            return pair_weight * plain
        bare = preference_loss(replace(main, regularizers=()), **tensors, **selections).losses
        return pair_weight * plain + scale * (preference_loss(static, **tensors, **selections).losses - bare)

    leaves = [batch[f"policy_{side}_logps"].clone().requires_grad_() for side in SIDES]
    assert torch.autograd.gradcheck(losses, leaves)
    frozen = torch.autograd.grad(losses(*leaves).sum(), leaves)
    for result, target in zip(policy_gradients(case, make_batch(seed=9))[1], frozen, strict=True):
        same(result, target)


@pytest.mark.parametrize(("objective", "carries"), [("tdpo1", (True, True)), ("tdpo2", (False, True))])
def test_tdpo_kl_gradients(objective, carries):
    """TDPO2 stops the gradient of the chosen KL; all other KL terms carry a gradient."""
    batch = make_batch(seed=10)
    leaves = [batch[f"{side}_kl"].requires_grad_() for side in SIDES]
    out = compute_preference_loss(objective, **batch)
    gradients = torch.autograd.grad(out.losses.sum(), leaves, allow_unused=True)
    for gradient, carried, side, sign in zip(gradients, carries, SIDES, (-1, 1), strict=True):
        if carried:
            assert (gradient[batch[f"{side}_mask"]].sign() == sign).all()
            assert (gradient[~batch[f"{side}_mask"]] == 0).all()
        else:
            assert gradient is None
    assert out.metrics["chosen_kl"].shape == out.losses.shape


@every_case
def test_detached_inputs_carry_no_gradient(case):
    batch = make_batch(seed=11)
    names = [kind.format(side) for kind in KINDS for side in SIDES if "policy" not in kind and "kl" not in kind]
    names = [name for name in names if not name.startswith("ref")]
    leaves = [batch[name].requires_grad_() for name in names]
    batch["policy_chosen_logps"].requires_grad_()
    out = run(case, batch)
    gradients = torch.autograd.grad(out.losses.sum(), leaves, allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_minor_dpo_has_no_gradient_for_a_rejected_response_at_or_below_the_reference():
    batch = make_batch(seed=12, pairs=3)
    offsets = torch.tensor([[0.5], [0.0], [-0.5]], dtype=torch.float64)
    batch["ref_rejected_logps"] = batch["policy_rejected_logps"] - offsets
    out, (_, rejected) = policy_gradients("minor_dpo", batch)
    assert (rejected[0][batch["rejected_mask"][0]] != 0).all()
    assert (rejected[1:] == 0).all()
    assert out.metrics["rejected_clamped"].tolist() == [0.0, 1.0, 1.0]


def test_a_wpo_weight_never_exceeds_one_and_scales_the_treg_term():
    batch = make_batch(seed=17)
    for side in SIDES:  # alignments of hundreds of nats: exp() of their sum overflows even float64
        batch[f"{side}_log_sum_p2"] = batch[f"policy_{side}_logps"] - 500.0
    out = compute_preference_loss("wpo", **batch)
    same(out.metrics["pair_weight"], torch.ones_like(out.losses))
    same(out.losses, compute_preference_loss("dpo", **batch).losses)

    batch = make_batch(seed=17)
    wpo = compute_preference_loss("wpo", treg_alpha=0.25, **batch)
    assert (wpo.metrics["pair_weight"] < 1).all()
    dpo = compute_preference_loss("dpo_reg", **batch)  # footnote 6: the weight is that of the pair's own gradient
    same(wpo.metrics["treg_weight"], wpo.metrics["pair_weight"] * dpo.metrics["treg_weight"])
    same(wpo.losses, wpo.metrics["pair_weight"] * dpo.losses)


LINKS = [
    Logistic(),
    Logistic(margin=1.0),
    Logistic(label_smoothing=0.2),
    Logistic(label_smoothing=0.2, robust=True),
    Hinge(),
    Square(target=5.0),
    Rank(),
    Odds(weight=0.1),
]


@pytest.mark.parametrize("link", LINKS, ids=repr)
def test_a_links_slope_is_its_absolute_derivative(link):
    h = torch.tensor([-1e4, -30.0, -1.5, -0.2, 0.3, 0.9, 1.7, 40.0, 1e4], dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(link.loss(h).sum(), h)
    same(link.slope(h), derivative.abs())


# --- numerics ---------------------------------------------------------------------------------------------------------

EXTREMES = [(0.0, 0.0), (-1e4, -1e4), (0.0, -1e4), (-1e4, 0.0), (-1e-7, -1e-9)]


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_values_and_gradients_stay_finite_at_the_extremes(case, dtype):
    for chosen in EXTREMES:
        for rejected in EXTREMES:
            batch = make_batch(seed=13, pairs=2, dtype=dtype)
            for side, (policy, reference) in zip(SIDES, (chosen, rejected), strict=True):
                batch[f"policy_{side}_logps"].fill_(policy)
                batch[f"ref_{side}_logps"].fill_(reference)
            out, gradients = policy_gradients(case, batch)
            assert out.losses.dtype == torch.promote_types(dtype, torch.float32)
            assert torch.isfinite(out.losses).all()
            assert all(torch.isfinite(metric).all() for metric in out.metrics.values())
            assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_case
def test_float32_agrees_with_float64(case):
    batch = make_batch(seed=14)
    narrow = {name: tensor if tensor.dtype == torch.bool else tensor.float() for name, tensor in batch.items()}
    out, reference = run(case, narrow), run(case, batch)
    assert torch.equal(out.chosen_selection, reference.chosen_selection)
    same(out.losses.double(), reference.losses, rtol=1e-5, atol=1e-5)


def test_orpo_odds_near_certainty():
    link = Odds(weight=0.1)
    reward = torch.tensor([-1e-3, -1e-5], dtype=torch.float32)
    exact = reward.double() - torch.log(-torch.expm1(reward.double()))
    same(link.term(reward).double(), exact, rtol=1e-6, atol=0.0)
    certain = torch.tensor([0.0, LARGEST_MEAN_LOGP / 2], requires_grad=True)
    terms = link.term(certain)
    (gradient,) = torch.autograd.grad(terms.sum(), certain)
    assert gradient.tolist() == [0.0, 0.0]
    same(terms.detach(), link.term(torch.tensor([LARGEST_MEAN_LOGP] * 2)))


def test_long_responses_keep_float32_digits():
    """Log-ratios are computed per token: the difference of two sums of a million nats would be noise."""
    width = 100_000
    logps = torch.full((1, width), -10.0)
    mask = torch.ones(1, width, dtype=torch.bool)
    step = torch.zeros(1, width)
    step[0, 7] = 0.03125
    out = compute_preference_loss(
        "dpo",
        policy_chosen_logps=logps + step,
        ref_chosen_logps=logps,
        policy_rejected_logps=logps,
        ref_rejected_logps=logps,
        chosen_mask=mask,
        rejected_mask=mask,
    )
    assert out.chosen_rewards.item() == pytest.approx(0.1 * 0.03125, rel=1e-6)


# --- composition and errors -----------------------------------------------------------------------------------------


def test_the_names_of_the_objectives():
    names = "dpo robust_dpo ipo hinge simpo rrhf orpo dpop minor_dpo"
    names += " sepo selective_dpo dpo_reg simpo_reg tdpo1 tdpo2 wpo"
    names += " confpo tgdpo d2po ld_dpo sampo tis_dpo critical_dpo otpo"
    assert list(OBJECTIVES) == names.split()


NEEDS = {
    # objective: reference, scores, token rewards, kl, log sum p^2, all tokens, selects
    "dpo": (True, False, False, False, False, True, False),
    "simpo": (False, False, False, False, False, True, False),
    "rrhf": (False, False, False, False, False, True, False),
    "orpo": (False, False, False, False, False, True, False),
    "minor_dpo": (True, False, False, False, False, True, False),
    "sepo": (False, True, False, False, False, False, True),
    "selective_dpo": (True, False, False, False, False, True, True),
    "dpo_reg": (True, False, True, False, False, True, False),
    "simpo_reg": (False, False, True, False, False, True, False),
    "tdpo1": (True, False, False, True, False, True, False),
    "tdpo2": (True, False, False, True, False, True, False),
    "wpo": (True, False, False, False, True, True, False),
    "confpo": (False, False, False, False, False, True, True),
    "tgdpo": (True, True, False, False, False, False, True),
    "d2po": (True, False, False, False, False, True, False),
    "sampo": (True, True, False, False, False, False, True),
    "otpo": (True, False, False, False, False, True, False),
}


@pytest.mark.parametrize("objective", NEEDS)
def test_what_a_method_needs(objective):
    method = resolve_method(objective)
    assert (
        method.needs_reference,
        method.needs_scores,
        method.needs_token_rewards,
        method.needs_kl,
        method.needs_log_sum_p2,
        method.needs_all_tokens,
        method.selects,
    ) == NEEDS[objective]


NEEDED = {
    "needs_token_rewards": "{}_token_rewards",
    "needs_kl": "{}_kl",
    "needs_log_sum_p2": "{}_log_sum_p2",
    "weighs_by_states": "{}_states",
}


@every_case
def test_a_method_reads_exactly_the_tensors_that_it_needs(case):
    """No other tensor changes the result, and a missing one is named in the error."""
    objective, hyperparameters = CASES[case]
    method = resolve_method(objective, **hyperparameters)
    kinds = [kind for attribute, kind in NEEDED.items() if getattr(method, attribute)]
    kinds += ["ref_{}_logps"] if method.needs_reference else []
    kinds += ["{}_scores"] if method.needs_scores else []
    kinds += ["{}_steps"] if method.needs_steps else []
    kinds += ["{}_counts"] if method.needs_counts else []
    names = [kind.format(side) for kind in kinds for side in SIDES]
    batch = make_batch(seed=15)
    always = {name: tensor for name, tensor in batch.items() if name.startswith("policy") or name.endswith("_mask")}
    enough = always | {name: batch[name] for name in names}
    same(run(case, enough).losses, run(case, batch).losses)
    for name in names:
        with pytest.raises(ValueError, match=rf"^{name} is missing, objective '{re.escape(method.name)}' needs it"):
            run(case, {key: tensor for key, tensor in enough.items() if key != name})


def test_parts_compose_by_replacement():
    batch = make_batch(seed=16)
    oracle = {"token_scorer": SCORERS["oracle"], "selector": Selector(chosen_ratio=0.3, rejected_ratio=0.3)}
    masks = {f"{side}_mask": batch[f"{side}_mask"] for side in SIDES}
    scores = {f"{side}_scores": batch[f"{side}_scores"] for side in SIDES}
    logps = {name: tensor for name, tensor in batch.items() if name.endswith("_logps")}
    for objective in ("minor_dpo", "simpo"):
        method = replace(resolve_method(objective), **oracle)
        chosen, rejected = select(method, **masks, **scores)
        out = preference_loss(method, chosen_selection=chosen, rejected_selection=rejected, **logps)
        expected = compute_preference_loss(objective, token_scorer="oracle", **batch)
        same(out.losses, expected.losses)
        assert not method.needs_all_tokens
        assert method.scorer == "oracle"


def test_a_method_can_be_compared_hashed_copied_and_pickled():
    for case, (objective, hyperparameters) in CASES.items():
        method = resolve_method(objective, **hyperparameters)
        assert method == resolve_method(objective, **hyperparameters), case
        assert hash(method) == hash(pickle.loads(pickle.dumps(method)))
        assert copy.deepcopy(method) == method
    assert resolve_method("dpo") != resolve_method("dpo", beta=0.2)


def test_hyperparameters_are_recorded_with_their_defaults():
    assert dict(resolve_method("sepo", gamma=2).hyperparameters) == {
        "gamma": 2.0,
        "chosen_ratio": 0.3,
        "rejected_ratio": 0.3,
    }
    assert dict(resolve_method("dpo").hyperparameters) == {"beta": 0.1, "label_smoothing": 0.0}
    assert dict(resolve_method("simpo", treg_alpha=0.1).hyperparameters) == {
        "beta": 2.0,
        "gamma": 1.0,
        "treg_alpha": 0.1,
    }


@pytest.mark.parametrize("unit", ["token", "span", "step"])
@pytest.mark.parametrize("scope", ["response", "pair"])
@pytest.mark.parametrize("scorer", ["random", "policy_ref", "confidence"])
def test_ratio_one_is_no_selection_in_any_unit_and_scope(unit, scope, scorer):
    batch = make_batch(seed=17)
    ratios = {"chosen_ratio": 1.0, "rejected_ratio": 1.0}
    out = compute_preference_loss("minor_dpo", **batch, token_scorer=scorer, unit=unit, scope=scope, **ratios)
    assert torch.equal(out.chosen_selection, batch["chosen_mask"])
    same(out.losses, compute_preference_loss("minor_dpo", **batch).losses)


def test_confidence_selects_the_least_likely_tokens_without_a_reference():
    method = resolve_method("simpo", token_scorer="confidence", chosen_ratio=0.4, rejected_ratio=0.4)
    assert not method.needs_reference
    assert method.needs_all_tokens
    logps = torch.tensor([[-0.1, -2.0, -0.3, -5.0, -0.2]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    arguments = {f"{side}_mask": mask for side in SIDES} | {f"policy_{side}_logps": logps for side in SIDES}
    for selection in select(method, **arguments):
        assert selection.tolist() == [[False, True, False, True, False]]


def test_contradictory_parts_raise():
    minor = resolve_method("minor_dpo")
    with pytest.raises(ValueError, match="RejectedClamp to rewards without a reference"):
        replace(minor, reward=ResponseReward(over_reference=False, average=True))
    with pytest.raises(ValueError, match=r"Odds to .* expected a plain mean log-probability"):
        replace(minor, link=Odds(weight=0.1))
    with pytest.raises(ValueError, match="token scorer 'oracle' without a selector"):
        replace(minor, token_scorer=SCORERS["oracle"])
    with pytest.raises(ValueError, match="token scorer 'none' with a selector"):
        replace(minor, selector=Selector(0.3, 0.3))


@pytest.mark.parametrize(
    ("objective", "hyperparameters", "message"),
    [
        ("dpoo", {}, "unknown objective 'dpoo'; available: dpo, robust_dpo, .*otpo. Did you mean 'dpo'"),
        ("sepo", {"gama": 1.0}, "'sepo' has no hyperparameter 'gama'; allowed: .*gamma.* Did you mean 'gamma'"),
        ("sepo", {"beta": 1.0}, "'sepo' has no hyperparameter 'beta'; allowed: chosen_ratio, count, gamma"),
        ("dpo", {"chosen_ratio": 0.3}, "no tokens are selected without a token scorer: set token_scorer"),
        ("sepo", {"token_scorer": "none", "chosen_ratio": 0.3}, "no tokens are selected without a token scorer"),
        ("dpo_reg", {"treg_alpha": 0.3}, "it already has T-REG's regularizer: set alpha"),
        ("sepo", {"unit": "spam"}, "unit of objective 'sepo' is 'spam', expected one of token, span, step"),
        ("sepo", {"scope": "batch"}, "scope of objective 'sepo' is 'batch', expected one of response, pair, dataset"),
        ("sepo", {"unit": "span", "span_tokens": 0}, "span_tokens of .* is 0, expected a whole number of at least 1"),
        ("sepo", {"unit": "span", "span_tokens": 2.5}, "is 2.5, expected a whole number"),
        ("sepo", {"span_tokens": 4}, "span_tokens of .* is 4 and unit is 'token', expected unit 'span'"),
        ("sepo", {"scope": "pair", "chosen_ratio": 0.2}, "one budget for both responses, found the ratios 0.2"),
        ("selective_dpo", {"scope": "dataset"}, "scope 'dataset' with the live token scorer 'policy_ref', expected st"),
        ("dpo", {"token_scorer": "confidence", "scope": "dataset"}, "expected stored scores .oracle, .*random"),
        (
            "selective_dpo",
            {"rule": "quantile", "scope": "pair"},
            "rule 'quantile' requires unit 'token' and scope 're",
        ),
        ("selective_dpo", {"rule": "quantile", "unit": "step"}, "rule 'quantile' .* found unit 'step'"),
        ("dpo", {"unit": "span"}, "no tokens are selected without a token scorer"),
        ("dpo", {"token_scorer": "orcale"}, "'orcale', expected one of oracle, .* Did you mean 'oracle'"),
        ("dpo", {"beta": 0.0}, r"beta of objective 'dpo' is 0.0, expected a number in \(0, inf\); the default is 0.1"),
        ("dpo", {"beta": math.inf}, "beta of objective 'dpo' is inf"),
        ("dpo", {"beta": math.nan}, "beta of objective 'dpo' is nan"),
        ("dpo", {"beta": "0.1"}, "beta of objective 'dpo' is '0.1', expected a number"),
        ("dpo", {"beta": True}, "beta of objective 'dpo' is True, expected a number"),
        ("dpo", {"beta": None}, "beta of objective 'dpo' is None, expected a number"),
        ("robust_dpo", {"label_smoothing": 0.5}, r"is 0.5, expected a number in \[0, 0.5\)"),
        ("sepo", {"chosen_ratio": 0}, r"chosen_ratio of objective 'sepo' is 0, expected a number in \(0, 1\]"),
        ("sepo", {"rejected_ratio": 1.1}, r"is 1.1, expected a number in \(0, 1\]"),
        ("ipo", {"average": 1}, "average of objective 'ipo' is 1, expected true or false"),
        ("dpo_reg", {"weighting": "token"}, "is 'token', expected one of sequence, static"),
        ("selective_dpo", {"rule": "top"}, "is 'top', expected one of floor, quantile, mean"),
        ("dpo", {"treg_alpha": -1.0}, r"treg_alpha of objective 'dpo' is -1.0, expected a number in \[0, inf\)"),
    ],
)
def test_errors_have_what_was_found_and_what_to_do(objective, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        resolve_method(objective, **hyperparameters)


def test_tensors_that_do_not_match_raise():
    batch = make_batch()

    def refused(message, objective="dpo", **changes):
        with pytest.raises(ValueError, match=message):
            compute_preference_loss(objective, **batch | changes)

    refused(r"chosen_mask has shape \[3, 6\], expected \[3, 7\]", chosen_mask=batch["chosen_mask"][:, :6])
    refused(r"ref_rejected_logps has shape \[3, 4\], expected", ref_rejected_logps=batch["ref_rejected_logps"][:, :4])
    refused(r"chosen_scores has shape \[3\], expected", "sepo", chosen_scores=torch.zeros(3))
    refused("rejected_mask has dtype torch.int64, expected torch.bool", rejected_mask=batch["rejected_mask"].long())
    refused("policy_chosen_logps has dtype torch.int64", policy_chosen_logps=torch.zeros(3, 7, dtype=torch.int64))
    rejected = {name: tensor[:2] for name, tensor in batch.items() if "rejected" in name}
    refused(r"\[3, 7\] and policy_rejected_logps \[2, 5\], expected .* the same B", **rejected)
    flat = {name: tensor[0] for name, tensor in batch.items()}
    refused(r"chosen_mask has shape \[7\], expected \[B, T\]", **flat)
    states = batch["rejected_states"]
    refused(
        r"rejected_states is torch.float64 \[3, 5\], expected .* \[B, T, H\]", "otpo", rejected_states=states[..., 0]
    )
    refused(r"expected .* B, T = 3, 5: pass the hidden state", "otpo", rejected_states=states[:, :4])
    refused("rejected_states is torch.int64", "otpo", rejected_states=states.long())
    refused("chosen_states and rejected_states have 3 and 2 features", "otpo", rejected_states=states[..., :2])
    empty = batch["rejected_mask"].clone()
    empty[1] = False
    for objective in OBJECTIVES:
        refused("rejected response in row 1 has 0 counted tokens", objective, rejected_mask=empty)
    nan = batch["chosen_scores"].clone()
    nan[2, 3] = math.nan
    seen = torch.ones_like(batch["chosen_mask"])
    refused("chosen response in row 2, position 3 is nan", "sepo", chosen_scores=nan, chosen_mask=seen)


def test_a_selection_without_a_token_raises():
    batch = make_batch()
    logps = {name: tensor for name, tensor in batch.items() if name.startswith("policy")}
    selection = batch["chosen_mask"].clone()
    selection[2] = False
    with pytest.raises(ValueError, match="chosen response's selection in row 2 has 0"):
        preference_loss(
            resolve_method("simpo"), chosen_selection=selection, rejected_selection=batch["rejected_mask"], **logps
        )


def test_examples_run():
    import doctest

    import sepo.objectives.compute

    result = doctest.testmod(sepo.objectives.compute)
    assert result.attempted > 0
    assert result.failed == 0
