"""Objectives, token scorers and token weights of other packages: the properties of the built-in ones, and errors."""

import math
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from sepo.errors import SepoError
from sepo.objectives import (
    Flag,
    Number,
    Objective,
    PairWeight,
    TokenScorer,
    WeightRule,
    available_objectives,
    available_scorers,
    available_weights,
    compute_preference_loss,
    preference_loss,
    resolve_method,
)
from sepo.objectives.presets import BUILT_IN
from tests.support.packages import WEIGHT_EXAMPLE, on_path, write_example, write_package

SCORERS = """
from sepo.objectives import TokenScorer

def mean_gap(tokens):  # the mean is over counted tokens, since values outside the mask are 0
    mean = tokens.policy_logps.sum(-1, keepdim=True) / tokens.mask.sum(-1, keepdim=True)
    return (mean - tokens.policy_logps).abs()

def gap(tokens):
    return tokens.ref_logps - tokens.policy_logps

def listed(tokens):
    return tokens.policy_logps.tolist()

live = TokenScorer("x", from_logps=mean_gap, rejected_largest=True)
with_reference = TokenScorer("x", from_logps=gap, compares_with_reference=True)
as_list = TokenScorer("x", from_logps=listed)
empty = TokenScorer("x")
"""
SELECTORS = {name: f"own_scorers:{name}" for name in ("live", "with_reference", "as_list", "empty")}
CASES = {
    "plain": {},
    "mean": {"mean": True, "focus": 1.0},
    "oracle": {"token_scorer": "oracle"},
    "live": {"token_scorer": "live"},
    "with_reference": {"token_scorer": "with_reference", "chosen_ratio": 0.5},
    "with T-REG": {"treg_alpha": 0.5, "token_scorer": "oracle"},
    "with pref_ftx": {"pref_ftx": 0.5},
    "weighed": {"token_weight": "ending", "ending_last": 2, "ending_rest": 0.5},
    "weighed selection": {"token_weight": "ending", "token_scorer": "oracle", "mean": True},
}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    directory = write_example(tmp_path_factory.mktemp("site"))
    write_example(directory, WEIGHT_EXAMPLE)
    write_package(directory, "own-scorers", {"selectors": SELECTORS}, SCORERS)
    with on_path(directory):
        yield directory


def batch(seed=0, pairs=3, widths=(7, 5)):
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for side, width in zip(("chosen", "rejected"), widths, strict=True):
        made[f"{side}_mask"] = torch.rand(pairs, width, generator=draw) < 0.7
        made[f"{side}_mask"][:, seed % width] = True
        for name in ("policy_{}_logps", "ref_{}_logps", "{}_scores"):
            made[name.format(side)] = -3 * torch.rand(pairs, width, generator=draw, dtype=torch.float64)
        made[f"{side}_token_rewards"] = torch.rand(pairs, width, generator=draw, dtype=torch.float64) - 0.5
    return made


def computed(case, tensors):
    leaves = {f"policy_{side}_logps": tensors[f"policy_{side}_logps"].clone().requires_grad_() for side in SIDES}
    out = compute_preference_loss("focal_dpo", **tensors | leaves, **CASES[case])
    return out, torch.autograd.grad(out.losses.sum(), list(leaves.values()))


SIDES = ("chosen", "rejected")


def test_the_loss_is_that_of_the_module():
    tensors = batch()
    out = compute_preference_loss("focal_dpo", focus=3, beta=0.4, **tensors)
    margin = out.chosen_rewards - out.rejected_rewards
    torch.testing.assert_close(out.losses, -torch.sigmoid(margin).log() * (1 - torch.sigmoid(margin)) ** 3)
    plain = compute_preference_loss("dpo", beta=0.4, **tensors)
    torch.testing.assert_close(compute_preference_loss("focal_dpo", focus=0, beta=0.4, **tensors).losses, plain.losses)


def test_names_are_listed_after_the_built_in_ones():
    assert available_objectives() == (*BUILT_IN, "focal_dpo")
    assert available_scorers()[-4:] == ("as_list", "empty", "live", "with_reference")
    method = resolve_method("focal_dpo", token_scorer="live")
    assert (method.name, method.scorer) == ("focal_dpo", "live")
    assert dict(method.hyperparameters)["focus"] == 2.0
    assert pickle.loads(pickle.dumps(method)) == method
    assert len({method, resolve_method("focal_dpo", token_scorer="live")}) == 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("junk", [math.nan, math.inf, 0.0, 1e30])
def test_an_extra_masked_token_changes_nothing(case, junk):
    tensors = batch(seed=len(case))
    out, gradients = computed(case, tensors)
    padded = {}
    for name, tensor in tensors.items():
        if name.endswith("_mask"):
            padded[name] = torch.nn.functional.pad(tensor, (2, 1))
        else:
            outside = ~tensors["chosen_mask" if "chosen" in name else "rejected_mask"]
            padded[name] = torch.nn.functional.pad(tensor.masked_fill(outside, junk), (2, 1), value=junk)
    again, more = computed(case, padded)
    torch.testing.assert_close(again.losses, out.losses)
    for side in SIDES:
        before, after = getattr(out, f"{side}_selection"), getattr(again, f"{side}_selection")
        assert torch.equal(after, torch.nn.functional.pad(before, (2, 1)))
    for before, after in zip(gradients, more, strict=True):
        torch.testing.assert_close(after, torch.nn.functional.pad(before, (2, 1)))


@pytest.mark.parametrize("case", [case for case in CASES if case != "with pref_ftx"])
def test_no_gradient_at_unselected_tokens(case):
    out, gradients = computed(case, batch(seed=3))
    for side, gradient in zip(SIDES, gradients, strict=True):
        selection = getattr(out, f"{side}_selection")
        assert (gradient[~selection] == 0).all()
        assert gradient[selection].isfinite().all()
        assert (gradient[selection] != 0).all()


def test_a_registered_weight_weighs_the_tokens():
    tensors = batch(seed=2)
    out = compute_preference_loss("dpo", token_weight="ending", ending_last=2, ending_rest=0.25, **tensors)
    for side in SIDES:
        mask, ratios = tensors[f"{side}_mask"], tensors[f"policy_{side}_logps"] - tensors[f"ref_{side}_logps"]
        for row, kept in enumerate(mask):
            values = ratios[row][kept]
            expected = 0.1 * (values[-2:].sum() + 0.25 * values[:-2].sum())
            torch.testing.assert_close(getattr(out, f"{side}_rewards")[row], expected)
    method = resolve_method("dpo", token_weight="ending")
    assert (method.token_weight.last, method.token_weight.rest) == (64, 0.2)
    assert pickle.loads(pickle.dumps(method)) == method
    assert available_weights()[-1] == "ending"


def test_a_live_scorer_sets_which_scores_of_a_rejected_response_are_selected():
    tensors = batch(seed=1)
    out = compute_preference_loss("focal_dpo", token_scorer="with_reference", rejected_ratio=0.2, **tensors)
    for row, mask in enumerate(tensors["rejected_mask"]):  # rejected_largest is False: the lowest score
        gap = tensors["ref_rejected_logps"][row] - tensors["policy_rejected_logps"][row]
        assert out.rejected_selection[row].nonzero()[0, 0] == gap.masked_fill(~mask, math.inf).argmin()


def test_slope_is_the_derivative_of_the_loss():
    link = resolve_method("focal_dpo", focus=1.5).link
    h = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(link.loss(h).sum(), h)
    torch.testing.assert_close(link.slope(h), gradient.abs())


def test_a_custom_pair_weight_needs_no_sums_over_the_vocabulary():
    class Half(PairWeight):
        def weight(self, *, chosen, rejected):
            return torch.full_like(chosen.policy[:, 0], 0.5)

    tensors = batch()
    method = replace(resolve_method("dpo"), pair_weight=Half())
    assert not method.needs_log_sum_p2
    masks = {f"{side}_selection": tensors[f"{side}_mask"] for side in SIDES}
    logps = {name: tensor for name, tensor in tensors.items() if name.endswith("_logps")}
    half = preference_loss(method, **masks, **logps)
    torch.testing.assert_close(half.losses, 0.5 * preference_loss(resolve_method("dpo"), **masks, **logps).losses)


def refused(call, *words):
    with pytest.raises(SepoError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_mistakes_of_a_caller_raise():
    refused(lambda: resolve_method("focal_dop"), "unknown objective 'focal_dop'", "Did you mean 'focal_dpo'")
    refused(lambda: resolve_method("focal_dpo", focsu=1), "no hyperparameter 'focsu'", "Did you mean 'focus'")
    refused(lambda: resolve_method("focal_dpo", focus=-1), "focus of objective 'focal_dpo' is -1", "[0, inf)")
    refused(lambda: resolve_method("focal_dpo", mean=1), "mean of objective 'focal_dpo' is 1", "true or false")
    refused(lambda: resolve_method("dpo", token_scorer="alive"), "token_scorer is 'alive'", "Did you mean 'live'")
    refused(lambda: resolve_method("dpo", token_scorer=3), "token_scorer is 3")
    refused(lambda: resolve_method("dpo", token_weight="endnig"), "token_weight is 'endnig'", "Did you mean 'ending'")
    refused(lambda: resolve_method("dpo", token_weight="ending", ending_lst=3), "'ending_lst'", "Did you mean 'ending_")
    refused(lambda: resolve_method("dpo", token_weight="ending", ending_last=0), "ending_last of objective 'dpo' is 0")
    tensors = batch()
    refused(lambda: compute_preference_loss("dpo", token_scorer="as_list", **tensors), "'as_list' returned list")
    refused(lambda: resolve_method("dpo", token_scorer="empty"), "own-scorers 0.1", "no function", "from_logps")
    refused(lambda: resolve_method("dpo", token_scorer="live", scope="dataset"), "live token scorer 'live'")


BROKEN = """
from sepo.objectives import Choice, Flag, Number, Objective, WeightRule, resolve_method

def build(**settings):
    return resolve_method("dpo")

reserved = Objective(build, {"weighting": Flag(True)})
tensor = Objective(build, {"chosen_tau": Number(1, low=0)})
selection = Objective(build, {"chosen_ratio": Flag(True)})
nothing = Objective(lambda: None)
no_weight = WeightRule(lambda: None)
text = "dpo"
"""


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("absent", "no_such_module:x", ["absent", "broken 0.1", "ModuleNotFoundError", "no_such_module", "fix that"]),
        ("misnamed", "broken:objectve", ["misnamed", "broken 0.1", "AttributeError", "objectve"]),
        ("text", "broken:text", ["broken 0.1", "is of type str", "sepo.objectives.Objective"]),
        ("reserved", "broken:reserved", ["setting 'weighting'", "reserved", "rename"]),
        ("tensor", "broken:tensor", ["setting 'chosen_tau'", "reserved"]),
        ("selection", "broken:selection", ["declares 'chosen_ratio'", "expected a Number"]),
        ("nothing", "broken:nothing", ["build of objective 'nothing' returned NoneType", "Method"]),
        ("my-loss", "broken:nothing", ["objective 'my-loss'", "letters, digits and underscores"]),
        ("simpo", "broken:nothing", ["objective 'simpo' is built in", "broken 0.1", "uninstall"]),
        ("focal_dpo", "broken:nothing", ["'focal_dpo'", "broken 0.1 (broken:nothing)", "own-loss 0.1 (own_loss:focal"]),
    ],
)
def test_an_unusable_package_raises_only_if_its_name_is_used(tmp_path, name, target, words):
    with on_path(write_package(tmp_path, "broken", {"objectives": {name: target}}, BROKEN)):
        refused(lambda: resolve_method(name), *words)
        assert resolve_method("dpo").name == "dpo"


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("absent", "no_such_module:x", ["token_weight 'absent'", "broken 0.1", "ModuleNotFoundError"]),
        ("text", "broken:text", ["broken 0.1", "is of type str", "sepo.objectives.WeightRule"]),
        ("nothing", "broken:no_weight", ["token_weight 'nothing'", "returned NoneType", "TokenWeight"]),
        ("my-weight", "broken:no_weight", ["token_weight 'my-weight'", "letters, digits and underscores"]),
        ("length", "broken:no_weight", ["token_weight 'length' is built in", "broken 0.1", "uninstall"]),
        ("ending", "broken:no_weight", ["'ending'", "broken 0.1 (broken:no_weight)", "own-weight 0.1 (own_weight:e"]),
    ],
)
def test_an_unusable_weight_raises_only_if_its_name_is_used(tmp_path, name, target, words):
    with on_path(write_package(tmp_path, "broken", {"weights": {name: target}}, BROKEN)):
        refused(lambda: resolve_method("dpo", token_weight=name), *words)
        assert resolve_method("d2po").token_weight.decay == 0.98


def test_declarations_are_checked_when_they_are_made():
    def build(*, tau):
        raise AssertionError

    refused(lambda: WeightRule(build, {"tua": Number(1.0, low=0)}), "does not take the settings tua", "tau")
    refused(lambda: WeightRule(build, {"tau": Number(0.0, low=0)}), "default of setting 'tau' is 0.0", "(0, inf)")
    refused(lambda: WeightRule(build, {"tau": 0.5}), "setting 'tau' is 0.5", "Number, Whole, Flag or Choice")
    refused(lambda: Objective(build, {"tua": Number(1.0, low=0)}), "does not take the settings tua", "tau")
    refused(lambda: Objective(build, {"tau": Number(0.0, low=0)}), "default of setting 'tau' is 0.0", "(0, inf)")
    refused(lambda: Objective(build, {"tau": 0.5}), "setting 'tau' is 0.5", "Number, Whole, Flag or Choice")
    refused(lambda: Objective(build, {"a b": Flag(True)}), "setting 'a b'", "a Python name")
    refused(lambda: TokenScorer("x", from_logps=build, from_row=build), "both live", "stored")
    refused(lambda: TokenScorer("x", from_row=build, compares_with_reference=True), "without from_logps")


def test_listing_names_imports_neither_torch_nor_the_packages(installed):
    code = (
        "import sys\nfrom sepo.plugins import names\n"
        "assert names('objective', built_in=()) == ('focal_dpo',)\n"
        "assert names('token_weight', built_in=()) == ('ending',)\n"
        "assert not {'torch', 'own_loss', 'own_scorers', 'own_weight'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"], check=True)
