"""Which weight of the chosen responses' likelihood (pref_ftx), and which rate with it?

    python benchmarks/claims/world_anchor.py            # writes results/world_anchor.json
    python benchmarks/claims/world_anchor.py --quick    # two seeds, tiny sizes: does everything run

The models and pairs of ``world_methods.py``; some of its policies with other weights and higher rates. The weight and
rate of a method are those with the highest mean share of right sampled responses to the validation questions.

Result file: as that of ``world_methods.py``; the name of a policy ends with its weight. ``best`` (by method: the row of
the best weight, chosen from ``comparisons``, with ``weight``, and ``minus`` the best ones of other methods).

An interrupted run continues by the same command; finished parts are kept in --work.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.command import parser, write_result
from claims.methods_study import COMPARED, SFT, methods
from claims.policies import compared
from claims.world_task import QUICK as QUICK_POLICIES
from claims.world_task import Setting as PolicySetting
from claims.world_task import kept_parts, log_ratios, prepared, progress, rows

METHODS = [name for name in COMPARED if "pref_ftx" not in name and name != SFT]
RECORDED = 0.2
"""The weight of ``world_methods.py``, whose policies are taken from there at the rates that both have."""
BASELINES = ("DPO, all tokens", "SePO, all tokens", "SePO 30 %, random tokens", SFT)


@dataclass(frozen=True)
class Setting:
    """Settings of the study.

    Args:
        policies: those of the models and pairs; its rates are not used.
        weights: weights of the likelihood of the chosen responses, with ``RECORDED``.
        rates: learning rates of policies.
    """

    policies: PolicySetting = field(default_factory=PolicySetting)
    weights: tuple[float, ...] = (0.05, 0.2, 1.0)
    rates: tuple[float, ...] = (1e-4, 2e-4, 3e-4, 1e-3, 3e-3)


QUICK = Setting(policies=QUICK_POLICIES, weights=(0.2, 1.0), rates=(1e-4,))


def named(method, weight):
    return f"{method}, pref_ftx {weight:g}"


def best(found, setting):
    """Return by method the result of its best weight, as ``policies.compared`` has it, and that weight."""
    chosen = {SFT: (found[SFT], None)}
    for method in METHODS:
        by_weight = {weight: found[named(method, weight)] for weight in setting.weights}
        weight = max(by_weight, key=lambda each: max(by_weight[each]["validation"].values()))
        chosen[method] = by_weight[weight], weight
    return chosen


def measured(setting, work):
    """Run everything that is not kept yet; return the result without its frame."""
    bar = progress()
    step = partial(bar.update)
    found, kept = prepared(setting.policies, work, step), kept_parts(work / "anchor", setting.policies)
    models, _ = found.oracles(setting.policies.oracle, step)
    oracle = log_ratios(found.task.shape, found.task.seeds, models, found.task.pairs)
    plain = methods(found.task, oracle, {})
    recorded = [SFT, *(named(method, RECORDED) for method in METHODS if RECORDED in setting.weights)]
    recorded = {name: plain[name] for name in recorded}
    trained = compared(found.task, recorded, setting.rates, found.kept, step)
    others = {
        named(method, weight): replace(plain[method], chosen_nll_weight=weight)
        for weight in setting.weights
        for method in METHODS
        if weight != RECORDED
    }
    trained |= compared(found.task, others, setting.rates, kept, step)
    bar.close()
    chosen = best(trained, setting)
    table = rows({method: own for method, (own, _) in chosen.items()}, len(setting.rates), BASELINES)
    for method, (_, weight) in chosen.items():
        table[method]["weight"] = weight
        if weight is not None:
            table[method]["comparisons"] *= len(setting.weights)
    return {
        "starts": found.starts,
        "redrawn": found.redrawn,
        "policies": rows(trained, len(setting.rates), ()),
        "best": table,
    }


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--weights", nargs="+", type=float, help="weights of the likelihood of the chosen responses")
    given = options.parse_args(argv)
    setting = QUICK if given.quick else Setting()
    if given.weights:
        setting = replace(setting, weights=tuple(given.weights))
    write_result(given, "world_anchor.json", setting, partial(measured, setting))


if __name__ == "__main__":
    main()
