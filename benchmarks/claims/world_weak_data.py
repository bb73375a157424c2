"""Do selected tokens of a weak model's responses train a strong policy better than all tokens?

    python benchmarks/claims/world_weak_data.py            # writes results/world_weak_data.json
    python benchmarks/claims/world_weak_data.py --quick    # two seeds, tiny sizes: does everything run

The pairs are samples of a smaller model after a third of the SFT steps: their chosen responses have wrong tokens, too,
and half of the wrong tokens are improbable to the policy. The policies are the models of ``world_methods.py``, after
SFT, and after DPO on pairs of their own. There are two oracles, trained on the weak pairs: from the policy's model
after SFT, and from the weak model; each at the rate with the highest preference accuracy on weak validation pairs.

Result file: ``setting``, ``machine``, ``versions``, ``date``; ``starts`` and ``redrawn`` seeds of the policies;
``weak`` (right responses of the weak model by seed, wrong tokens per chosen and rejected response); ``oracles`` (by
name: ``rate``, ``accuracy``, ``credit``, and ``wrong_of_selected``, the share of wrong tokens among those that are
selected in chosen responses, each by seed); ``policies`` by what was trained, and by name as in ``world_methods.py``.

An interrupted run continues by the same command; finished parts are kept in --work.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.chosen_oracles import chosen_oracle, from_starts, other_starts, wrong_of_selected
from claims.command import parser, write_result
from claims.data import seed_data
from claims.methods_study import ANCHOR, COMPARED, KNOWN, methods, selective
from claims.policies import compared, random_credit
from claims.stacked import Shape
from claims.world_task import QUICK as QUICK_POLICIES
from claims.world_task import Setting as PolicySetting
from claims.world_task import kept_parts, prepared, progress, rows

BEFORE = "before training"
BASELINES = [BEFORE] + [
    f"{name}{end}"
    for end in ("", f", {ANCHOR}")
    for name in ("SePO, all tokens", "DPO, all tokens", "SePO 30 %, random tokens")
]
WEAK_ORACLE = "oracle of the weak model"
AFTER_SFT, AFTER_DPO = "after SFT", "after DPO"
"""What is trained on the weak data."""


@dataclass(frozen=True)
class Setting:
    """Settings of the study.

    Args:
        policies: those of the policies.
        weak: sizes of the weak model.
        weak_steps: its steps of SFT; chosen with other seeds than those of the study.
        rates: learning rates of oracles.
        epochs: epochs of oracles.
        policy_rates: learning rates of policies, in place of those of ``policies``.
    """

    policies: PolicySetting = field(default_factory=PolicySetting)
    weak: Shape = field(default_factory=lambda: Shape(hidden=32, intermediate=64, layers=1))
    weak_steps: int = 500
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    epochs: int = 2
    policy_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)


QUICK = Setting(policies=QUICK_POLICIES, weak_steps=5, rates=(1e-4,), policy_rates=(1e-4,))


def weak_seeds(setting, task, kept, on_step):
    """Return the seeds' data with the weak model and pairs of its samples, and what is known of them."""
    models, right = other_starts(task.world, setting.weak, task.seeds, setting.weak_steps, kept, "weak", on_step)
    seeds = [
        seed_data(task.world, setting.weak, setting.policies.sizes, each.seed, model, right[str(each.seed)])
        for each, model in zip(task.seeds, models, strict=True)
    ]
    wrong = torch.stack([each.pairs.wrong.double().sum(-1).mean(0) for each in seeds], 1)
    return seeds, {"right": right, "wrong_of_chosen": wrong[0].tolist(), "wrong_of_rejected": wrong[1].tolist()}


def policies(task, own, weak):
    """Return the policies to train, with the scores of both oracles."""
    found = {name: policy for name, policy in methods(task, own, {}).items() if name in COMPARED and KNOWN not in name}
    return found | selective(WEAK_ORACLE, weak)


def measured(setting, names, work):
    """Run everything that is not kept yet; return the result without its frame."""
    bar = progress()
    step = partial(bar.update)
    found, parts = prepared(setting.policies, work, step), replace(setting, policy_rates=())
    kept = kept_parts(work / "weak-data", parts)
    strong = found.task.seeds
    weak, known = weak_seeds(setting, found.task, kept, step)
    data = from_starts(weak, torch.stack([each.start for each in strong]))
    arguments = setting.rates, setting.epochs, kept
    own = chosen_oracle(found.task.shape, data, *arguments, "own", step)
    small = chosen_oracle(setting.weak, weak, *arguments, "weak", step)
    tuned, _ = found.oracles(setting.policies.oracle, step)
    trained = {}
    for name, models in {AFTER_SFT: None, AFTER_DPO: tuned}.items():
        if names and name not in names:
            continue
        seeds = data if models is None else from_starts(data, models)
        task = replace(found.task, seeds=seeds, pairs=[each.pairs for each in seeds])
        results = {BEFORE: {"rate": None, "held_out": task.right_before(), "validation": {}}}
        kept = kept_parts(work / f"weak-data-{name.replace(' ', '-')}", parts)
        results |= compared(task, policies(task, own.scores, small.scores), setting.policy_rates, kept, step)
        trained[name] = rows(results, len(setting.policy_rates), BASELINES)
    bar.close()
    chance = [random_credit(each.pairs, each.seed) for each in data]
    return {
        "starts": found.starts,
        "redrawn": found.redrawn,
        "weak": known,
        "oracles": {
            name: {**each.measured, "wrong_of_selected": wrong_of_selected(each.scores, data)}
            for name, each in {"oracle": own, WEAK_ORACLE: small}.items()
        },
        "wrong_of_random": wrong_of_selected(chance, data),
        "policies": trained,
    }


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", default=[], choices=(AFTER_SFT, AFTER_DPO), help="what is trained")
    given = options.parse_args(argv)
    setting = QUICK if given.quick else Setting()
    write_result(given, "world_weak_data.json", setting, partial(measured, setting, given.only))


if __name__ == "__main__":
    main()
