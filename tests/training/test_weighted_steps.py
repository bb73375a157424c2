"""Steps of methods with token weights, and of sums of objectives, against full log-probabilities; their invariance."""

import copy
import math

import pytest
import torch

from sepo.errors import SepoError
from sepo.objectives import compute_preference_loss, resolve_method
from sepo.training import preference_step
from sepo.training.batch_parts import Parts
from sepo.training.float_columns import SCORES, batch_floats
from tests.support.steps import assert_same, collate, gradients, make_pairs, running, slow_log_probs

SIDES = ("chosen", "rejected")
CASES = {
    "confpo": ("confpo", {}),
    "confpo by position": ("confpo", {"token_weight": "position", "position_decay": 0.8}),
    "tgdpo with negative weights": ("tgdpo", {"beta": 0.7, "alpha": 3.0}),
    "d2po": ("d2po", {"decay": 0.8}),
    "ld_dpo": ("ld_dpo", {}),
    "ld_dpo, alpha 0": ("ld_dpo", {"alpha": 0.0}),
    "sampo": ("sampo", {}),
    "tis_dpo": ("tis_dpo", {}),
    "critical_dpo": ("critical_dpo", {}),
    "sum": ({"dpo": 0.8, "orpo": 0.2, "sft": 0.1}, {}),
    "sum of weighted terms with sums over the vocabulary": ({"tdpo2": 0.5, "wpo": 0.3, "d2po": 1.0},
                                                             {"token_weight": "position", "decay": 0.8}),
    "sum over a selection": ({"sepo": 1.0, "minor_dpo": 0.5}, {"chosen_ratio": 0.5, "rejected_ratio": 0.4}),
    "sepo by position": ("sepo", {"chosen_ratio": 0.5, "token_weight": "position", "position_decay": 0.8}),
    "simpo by importance": ("simpo", {"token_scorer": "oracle", "token_weight": "importance", "chosen_ratio": 0.6}),
    "dpo weighed by live scores": ("dpo", {"token_scorer": "confidence", "token_weight": "scores"}),
    "tgdpo of log-ratios to the reference": ("tgdpo", {"token_scorer": "policy_ref", "alpha": 2.0}),
    "ld_dpo with all chosen tokens": ("ld_dpo", {"pref_ftx": 0.2}),
}  # fmt: skip
METHODS = {name: resolve_method(objective, **given) for name, (objective, given) in CASES.items()}
every_case = pytest.mark.parametrize("case", CASES)


def pairs_for(case, count=4, seed=0):
    """Return pairs with scores that are exact in float32, those of ``critical_dpo`` in [0, 1]."""
    pairs = make_pairs(count, seed)
    for pair in pairs:
        for side in SIDES:
            scores = torch.tensor(pair[f"{side}_scores"])
            pair[f"{side}_scores"] = (scores.sigmoid() if case == "critical_dpo" else scores).tolist()
    return pairs


def step(policy, reference, case, pairs, *, extra=0, **options):
    method = METHODS[case]
    live = running(reference) if method.needs_reference else None
    return preference_step(policy, collate(pairs, method, extra), method=method, reference=live, **options)


def full_statistics(model, reference, batch):
    """Return log-probabilities of both models, KL(ref || policy) and log sum p^2, [2B, T - 1], from full logits."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logps = model(**inputs).logits[:, :-1].log_softmax(-1)
    with torch.no_grad():
        ref = reference(**inputs).logits[:, :-1].log_softmax(-1)
    index = batch["input_ids"][:, 1:, None]
    return {
        "policy": logps.gather(-1, index)[..., 0],
        "ref": ref.gather(-1, index)[..., 0],
        "kl": (ref.exp() * (ref - logps)).sum(-1),
        "log_sum_p2": (2 * logps).logsumexp(-1),
    }


def twin(policy, reference, case, pairs):
    """Return the mean loss from full log-probabilities of the padded batch, and the output of the objective."""
    objective, given = CASES[case]
    batch = collate(pairs, resolve_method("dpo"))
    found = full_statistics(policy, reference, batch)
    scores = torch.zeros(found["policy"].shape)
    mask = batch["labels"][:, 1:] != -100
    for row, values in enumerate([pair[f"{side}_scores"] for side in SIDES for pair in pairs]):
        scores[row, mask[row]] = torch.tensor(values)
    inputs = {}
    for side, rows in zip(SIDES, (slice(None, len(pairs)), slice(len(pairs), None)), strict=True):
        inputs |= {f"{side}_mask": mask[rows], f"{side}_scores": scores[rows]}
        inputs |= {f"{name}_{side}_logps": found[name][rows] for name in ("policy", "ref")}
        inputs |= {f"{side}_{name}": found[name][rows] for name in ("kl", "log_sum_p2")}
    output = compute_preference_loss(objective, **inputs, **given)
    return output.losses.mean(), output


@every_case
@pytest.mark.parametrize("share", [True, False], ids=["shared prompts", "padded"])
def test_the_step_equals_full_log_probabilities(policy, reference, case, share):
    for seed in (0, 1):
        pairs = pairs_for(case, seed=seed)
        expected, output = twin(policy, reference, case, pairs)
        for chunk_tokens in (None, 1):
            result = step(policy, reference, case, pairs, share_prompts=share, chunk_tokens=chunk_tokens)
            assert_same(policy, result.loss, expected, tolerance=1e-9)
            expected, output = twin(policy, reference, case, pairs)
        selected = output.chosen_selection.sum() + output.rejected_selection.sum()
        assert result.metrics["select/tokens"] == selected
        weights = [output.chosen_weights, output.rejected_weights]
        if METHODS[case].token_weight is None:
            assert "select/chosen_effective" not in result.metrics
            continue
        for side, values in zip(SIDES, weights, strict=True):
            effective = (values.sum(-1) ** 2 / values.square().sum(-1)).nan_to_num()  # 0 without a token
            assert result.metrics[f"select/{side}_effective"] == pytest.approx(effective.mean().item(), rel=1e-5)


def test_the_cases_have_negative_and_vanishing_weights(policy, reference):
    """What the cases are named after does occur in their batches."""
    _, output = twin(policy, reference, "tgdpo with negative weights", pairs_for("tgdpo"))
    assert (output.chosen_weights < 0).any()
    _, output = twin(policy, reference, "ld_dpo, alpha 0", pairs_for("ld_dpo"))
    assert (output.chosen_weights.count_nonzero() + output.rejected_weights.count_nonzero()) < sum(
        len(pair[f"{side}_scores"]) for pair in pairs_for("ld_dpo") for side in SIDES
    )


@every_case
def test_padding_order_accumulation_and_parts_do_not_matter(policy, reference, case):
    pairs = pairs_for(case, seed=3)
    whole = step(policy, reference, case, pairs)
    value, expected = whole.loss.item(), gradients(policy, whole.loss)

    def same(loss, found):
        assert math.isclose(loss, value, rel_tol=1e-10)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    moved = step(policy, reference, case, [pairs[index] for index in (2, 0, 3, 1)], extra=5)
    assert moved.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-6)
    same(moved.loss.item(), gradients(policy, moved.loss))

    single = [step(policy, reference, case, [pair]).loss / 4 for pair in pairs]
    same(sum(loss.item() for loss in single), gradients(policy, sum(single)))

    def backward(compute):
        loss = compute()
        loss.backward()
        return loss.detach()

    for budget in (1, 30):
        policy.zero_grad()
        parts = step(policy, reference, case, pairs, parts=Parts(budget, backward=backward))
        assert parts.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-6)
        parts.loss.backward()
        same(parts.loss.item(), {name: parameter.grad.clone() for name, parameter in policy.named_parameters()})

    filled = step(policy, reference, case, pairs, counted=2)
    first = step(policy, reference, case, pairs[:2], counted=2)
    assert filled.metrics == pytest.approx(first.metrics, rel=1e-5, abs=1e-6)
    assert_same(policy, filled.loss, first.loss, tolerance=1e-10)


@pytest.mark.parametrize("case", ["d2po", "ld_dpo", "ld_dpo, alpha 0", "tgdpo with negative weights", "critical_dpo",
                                  "sampo", "sepo by position", "sum over a selection"])  # fmt: skip
def test_the_head_runs_on_tokens_with_a_weight_only(policy, reference, case):
    pairs = pairs_for(case)
    if case == "critical_dpo":
        pairs[0]["rejected_scores"][0] = 1.0  # weight 0
    step(policy, reference, case, pairs)  # the first call may include the check of the head
    counts = []
    hook = policy.lm_head.register_forward_hook(lambda head, arguments, output: counts.append(output.numel()))
    step(policy, reference, case, pairs)
    hook.remove()
    _, output = twin(policy, reference, case, pairs)
    selected = [output.chosen_selection, output.rejected_selection]
    if output.chosen_weights is not None:
        selected = [output.chosen_weights, output.rejected_weights]
    assert counts == [sum(int(values.count_nonzero()) for values in selected)]
    tokens = sum(len(pair[f"{side}_scores"]) for pair in pairs for side in SIDES)
    everything = ("d2po", "ld_dpo", "tgdpo with negative weights")
    assert counts[0] == tokens if case in everything else counts[0] < tokens


def test_tokens_after_the_shorter_response_are_not_run_with_alpha_0(policy, reference):
    """LD-DPO with alpha 0 is the loss of responses that end where the shorter one does."""
    pairs = pairs_for("ld_dpo, alpha 0")
    cut = copy.deepcopy(pairs)
    for pair in cut:
        length = min(len(pair[f"{side}_scores"]) for side in SIDES)
        for side in SIDES:
            longer = len(pair[f"{side}_scores"]) - length
            for name in ("input_ids", "labels", "scores"):
                pair[f"{side}_{name}"] = pair[f"{side}_{name}"][: len(pair[f"{side}_{name}"]) - longer]
    dpo = resolve_method("dpo")
    expected = preference_step(policy, collate(cut, dpo), method=dpo, reference=running(reference))
    assert_same(policy, step(policy, reference, "ld_dpo, alpha 0", pairs).loss, expected.loss)


def test_stored_scores_equal_live_ones(policy, reference):
    """Tokens selected and weighed by stored numbers that are those of the live scorer at this step."""
    pairs = pairs_for("stored", seed=5)
    with torch.no_grad():
        for pair in pairs:
            for side, sign in zip(SIDES, (-1, 1), strict=True):  # low scores are selected in rejected responses
                logps = slow_log_probs(policy, pair[f"{side}_input_ids"], pair[f"{side}_labels"])
                pair[f"{side}_scores"] = [sign * math.exp(logp) for logp in logps]
    stored = resolve_method("simpo", token_scorer="file", rule="mean", beta=1.5, gamma=1.6)
    live = step(policy, reference, "confpo", pairs)
    cached = preference_step(policy, collate(pairs, stored), method=stored)
    for side in SIDES:  # sums over the computed tokens: the selected ones, and all
        assert cached.metrics.pop(f"logps/{side}") > live.metrics.pop(f"logps/{side}")
        del cached.metrics[f"logps/{side}_mean"], live.metrics[f"logps/{side}_mean"]
    assert cached.metrics == pytest.approx(live.metrics, rel=1e-5)
    assert_same(policy, cached.loss, live.loss)

    case = "dpo weighed by live scores"
    with torch.no_grad():
        for pair in pairs:
            for side in SIDES:
                logps = slow_log_probs(policy, pair[f"{side}_input_ids"], pair[f"{side}_labels"])
                pair[f"{side}_scores"] = [-logp.item() for logp in logps]
    stored = resolve_method("dpo", token_scorer="file", token_weight="scores")
    live = resolve_method("dpo", token_scorer="confidence", token_weight="scores", chosen_ratio=1.0, rejected_ratio=1.0)
    assert METHODS[case].selector == live.selector
    cached = preference_step(policy, collate(pairs, stored), method=stored, reference=running(reference))
    expected = preference_step(policy, collate(pairs, live), method=live, reference=running(reference))
    assert_same(policy, cached.loss, expected.loss, tolerance=1e-6)  # stored scores are float32


@every_case
def test_no_input_of_a_batch_is_a_float(policy, reference, case):
    """An engine that casts floating-point inputs (DeepSpeed) changes neither selection nor weights."""
    pairs, method = pairs_for(case), METHODS[case]
    batch = collate(pairs, method)
    assert not any(tensor.is_floating_point() for tensor in batch.values())
    assert (SCORES in batch) == (method.weighs_by_scores and method.needs_scores)
    if SCORES in batch:
        found = batch_floats(batch, SCORES, missing="")
        responses = batch["labels"] != -100
        given = [pair[f"{side}_scores"] for side in SIDES for pair in pairs]
        assert [found[row, responses[row]].tolist() for row in range(8)] == given
        del batch[SCORES]
        live = running(reference) if method.needs_reference else None
        with pytest.raises(SepoError, match=r"the batch has no 'scores', which .* weighs tokens by"):
            preference_step(policy, batch, method=method, reference=live)


UNWEIGHED = {
    "one response": lambda index, side: index == 1 and side == "rejected",
    "both responses of a pair": lambda index, side: index == 1,
    "all rejected responses": lambda index, side: side == "rejected",
    "the batch": lambda index, side: True,
}


@pytest.mark.parametrize("share", [True, False], ids=["shared prompts", "padded"])
@pytest.mark.parametrize("which", UNWEIGHED)
@pytest.mark.parametrize("given", [{}, {"pref_ftx": 0.3}], ids=["", "pref_ftx"])
def test_responses_whose_weights_are_all_zero_add_nothing(policy, reference, which, share, given):
    """Their sums are 0; no NaN in loss, gradients and metrics."""
    pairs = pairs_for("zero", seed=2)
    for index, pair in enumerate(pairs):
        for side in SIDES:
            if UNWEIGHED[which](index, side):
                pair[f"{side}_scores"] = [0.0] * len(pair[f"{side}_scores"])
    CASES["zero"] = ("dpo", {"token_scorer": "file", "token_weight": "scores", "beta": 0.5, **given})
    METHODS["zero"] = resolve_method("dpo", **CASES["zero"][1])
    expected, _ = twin(policy, reference, "zero", pairs)
    result = step(policy, reference, "zero", pairs, share_prompts=share)
    assert all(math.isfinite(value) for value in result.metrics.values()), result.metrics
    if which == "the batch" and not given:
        assert result.loss.item() == pytest.approx(math.log(2))
        assert not any(gradient.any() for gradient in gradients(policy, result.loss).values())
        return
    assert_same(policy, result.loss, expected)
    parts = step(policy, reference, "zero", pairs, share_prompts=share, parts=Parts(1))
    assert parts.loss.item() == pytest.approx(result.loss.item(), rel=1e-12)


def test_a_mean_of_weights_that_are_all_zero_raises_with_its_row(policy, reference):
    method = resolve_method("simpo", token_scorer="oracle", token_weight="importance", importance_low=0.0)
    pairs = pairs_for("importance")
    pairs[2]["rejected_scores"] = [9.0] * len(pairs[2]["rejected_scores"])
    with pytest.raises(SepoError, match=r"weights of the rejected response in row 2 are all 0, and simpo takes"):
        preference_step(policy, collate(pairs, method), method=method)


def single_tokens(pairs):
    """Cut every response to one token, of which none is below the mean."""
    cut = copy.deepcopy(pairs)
    for pair in cut:
        for side in SIDES:
            longer = len(pair[f"{side}_scores"]) - 1
            for name in ("input_ids", "labels", "scores"):
                pair[f"{side}_{name}"] = pair[f"{side}_{name}"][: len(pair[f"{side}_{name}"]) - longer]
    return cut


@pytest.mark.parametrize("share", [True, False], ids=["shared prompts", "padded"])
@pytest.mark.parametrize("case", ["confpo", "confpo by position"])
def test_pairs_without_a_token_below_the_mean_have_loss_zero(policy, reference, case, share):
    empty = single_tokens(pairs_for(case))
    result = step(policy, reference, case, empty, share_prompts=share)
    assert result.loss.item() == 0.0
    assert result.metrics["objective/empty_pair"] == 1.0
    assert all(math.isfinite(value) for value in result.metrics.values()), result.metrics
    assert all((gradient == 0).all() for gradient in gradients(policy, result.loss).values())
    # They count in the mean over the pairs.
    others = pairs_for(case, seed=1)[:2]
    mixed = step(policy, reference, case, [*empty[:2], *others], share_prompts=share)
    alone = step(policy, reference, case, others, share_prompts=share)
    assert_same(policy, mixed.loss, alone.loss / 2)
