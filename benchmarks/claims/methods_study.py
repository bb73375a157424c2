"""The methods that are compared in the world, by name, and credit that is damaged by degrees."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

import torch
from torch import Tensor

from claims.policies import Policy, Task, known_credit, random_credit
from claims.world import Pairs
from sepo.objectives import Method, resolve_method

ORACLE, KNOWN, RANDOM = "oracle", "known tokens", "random tokens"
ANCHOR = "pref_ftx 0.2"
"""End of the names of policies whose loss has the likelihood of the chosen responses, with this weight."""
BASELINES = tuple(name + end for end in ("", f", {ANCHOR}") for name in ("DPO, all tokens", "SePO 30 %, random tokens"))
"""The policies to which all are compared; SePO with random tokens is the ablation of selection."""
SFT = "SFT on chosen"
_MAIN = ("DPO, all tokens", *(f"SePO 30 %, {name}" for name in (ORACLE, KNOWN, RANDOM)), "SePO, all tokens")
COMPARED = (*_MAIN, SFT, *(f"{name}, {ANCHOR}" for name in _MAIN))
"""The policies that are part of every study."""
DAMAGE = (0.9, 0.8, 0.7, 0.6)


def damaged(pairs: Pairs, auroc: float, seed: int) -> Tensor:
    """Return the known credit with noise, [N, 2, T], so that a wrong token ranks below a right one with P = ``auroc``.

    The noise is normal with sigma = 1 / (sqrt(2) z), z the normal quantile of ``auroc``, in (0.5, 1).
    """
    sigma = 1 / (math.sqrt(2) * NormalDist().inv_cdf(auroc))
    noise = torch.randn(pairs.wrong.shape, generator=torch.Generator().manual_seed(seed + 2))
    return -pairs.wrong.float() + sigma * noise


def sepo(ratio: float) -> Method:
    return resolve_method("sepo", chosen_ratio=ratio, rejected_ratio=ratio)


def selective(name: str, credit: Sequence[Tensor]) -> dict[str, Policy]:
    """Return SePO on 30 % of the tokens by credit of this name, without and with the likelihood of chosen responses."""
    policy = Policy(sepo(0.3), credit)
    return {f"SePO 30 %, {name}": policy, f"SePO 30 %, {name}, {ANCHOR}": replace(policy, chosen_nll_weight=0.2)}


def methods(task: Task, oracle: Sequence[Tensor], stronger: Mapping[str, Sequence[Tensor]]) -> dict[str, Policy]:
    """Return the policies to train, the most important ones first.

    Args:
        task: pairs and seeds.
        oracle: per seed, the oracle's scores, [N, 2, T].
        stronger: by name, per seed, the log-probabilities of a reference for Selective-DPO, [N, 2, T].
    """
    seeds = [each.seed for each in task.seeds]
    credits = {
        ORACLE: oracle,
        KNOWN: [known_credit(*each) for each in zip(task.pairs, seeds, strict=True)],
        RANDOM: [random_credit(*each) for each in zip(task.pairs, seeds, strict=True)],
    }
    dpo = resolve_method("dpo", beta=0.1)
    found = {"DPO, all tokens": Policy(dpo)}
    found |= {f"SePO 30 %, {name}": Policy(sepo(0.3), credit) for name, credit in credits.items()}
    found["SePO, all tokens"] = Policy(sepo(1.0), credits[KNOWN])
    found[SFT] = Policy(None, chosen_nll_weight=1.0)
    selected = resolve_method("dpo", beta=0.1, token_scorer="oracle")
    found |= {f"DPO 30 %, {name}": Policy(selected, credit) for name, credit in credits.items()}
    worse = {
        f"credit of AUROC {level:g}": [damaged(own, level, seed) for own, seed in zip(task.pairs, seeds, strict=True)]
        for level in DAMAGE
    }
    found |= {f"SePO 30 %, {name}": Policy(sepo(0.3), credit) for name, credit in worse.items()}
    found["MinorDPO, all tokens"] = Policy(resolve_method("minor_dpo", beta=0.1))
    rewards = [torch.sigmoid(each) - 0.5 for each in oracle]
    found["T-REG over DPO, oracle's rewards"] = Policy(resolve_method("dpo_reg", beta=0.1), rewards, rewards=True)
    found |= {
        f"Selective-DPO, reference: {name}": Policy(resolve_method("selective_dpo", beta=0.1), references=logps)
        for name, logps in stronger.items()
    }
    anchored = {
        "DPO, all tokens": Policy(dpo),
        "DPO 30 %, oracle": Policy(selected, oracle),
        "SePO, all tokens": found["SePO, all tokens"],
        **{f"SePO 30 %, {name}": Policy(sepo(0.3), credit) for name, credit in (credits | worse).items()},
    }
    found |= {f"{name}, {ANCHOR}": replace(each, chosen_nll_weight=0.2) for name, each in anchored.items()}
    found["SimPO, all tokens"] = Policy(resolve_method("simpo"))
    found |= {f"SePO {ratio:.0%}, oracle".replace("%", " %"): Policy(sepo(ratio), oracle) for ratio in (0.1, 0.5)}
    return found
