"""Do smaller oracles select as well for a larger policy as an oracle of its size?

    python benchmarks/claims/world_smaller_oracle.py            # writes results/world_smaller_oracle.json
    python benchmarks/claims/world_smaller_oracle.py --quick    # two seeds, tiny sizes: does everything run

The policies and pairs are those of ``world_methods.py``. A smaller oracle has an SFT of its own, of as many steps, and
DPO on the policy's pairs, at the rate with the highest preference accuracy on validation pairs. What both studies have
in common is trained once, if they are given the same --work.

Result file: as that of ``world_methods.py``; ``oracles`` (by name: ``parameters``, share of ``right`` responses after
SFT by seed, chosen ``rate``, ``accuracy`` by rate, ``credit`` by seed), ``policy_parameters``; each policy is compared
with ``BASELINES``.

An interrupted run continues by the same command; finished parts are kept in --work.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.chosen_oracles import chosen_oracle, from_starts, other_starts
from claims.command import parser, write_result
from claims.methods_study import ANCHOR, COMPARED, methods, selective
from claims.policies import compared
from claims.stacked import Shape
from claims.world_task import QUICK as QUICK_POLICIES
from claims.world_task import Setting as PolicySetting
from claims.world_task import kept_parts, log_ratios, prepared, progress, rows

BASELINES = [
    f"{name}{end}"
    for end in ("", f", {ANCHOR}")
    for name in ("SePO 30 %, oracle", "SePO, all tokens", "DPO, all tokens", "SePO 30 %, random tokens")
]


@dataclass(frozen=True)
class Setting:
    """Settings of the study.

    Args:
        policies: those of the policies, with their pairs.
        shapes: sizes of the smaller oracles.
        rates: their learning rates.
        epochs: their epochs.
        policy_rates: learning rates of the policies that are compared, in place of those of ``policies``: below them
            all policies of ``world_methods.py`` have fewer right responses.
    """

    policies: PolicySetting = field(default_factory=PolicySetting)
    shapes: tuple[Shape, ...] = (Shape(hidden=32, intermediate=64, layers=1), Shape(8, 16, layers=1, heads=2))
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    epochs: int = 2
    policy_rates: tuple[float, ...] = (1e-4, 2e-4, 3e-4, 1e-3)


QUICK = Setting(policies=QUICK_POLICIES, rates=(1e-4,), policy_rates=(1e-4,))


def measured(setting, work):
    """Run everything that is not kept yet; return the result without its frame."""
    bar = progress()
    step = partial(bar.update)
    found = prepared(setting.policies, work, step)
    task, kept = found.task, kept_parts(work / "smaller-oracle", replace(setting, policy_rates=(), shapes=()))
    models, credits = found.oracles(setting.policies.oracle, step)
    own = log_ratios(task.shape, task.seeds, models, task.pairs)
    oracles = {"oracle": {"parameters": models.shape[1], "right": found.starts, "credit": credits}}
    recorded = {name: policy for name, policy in methods(task, own, {}).items() if name in COMPARED}
    trained = compared(task, recorded, setting.policy_rates, found.kept, step)
    steps = setting.policies.sizes.sft_steps
    for shape in setting.shapes:
        label = f"{shape.layers}-{shape.hidden}-{shape.intermediate}"
        starts, right = other_starts(task.world, shape, task.seeds, steps, kept, label, step)
        chosen = chosen_oracle(
            shape, from_starts(task.seeds, starts), setting.rates, setting.epochs, kept, label, step
        )  # fmt: skip
        name = f"oracle of {chosen.measured['parameters']:,} parameters"
        oracles[name] = {"right": right, **chosen.measured}
        trained |= compared(task, selective(name, chosen.scores), setting.policy_rates, kept, step)
    bar.close()
    return {
        "starts": found.starts,
        "redrawn": found.redrawn,
        "policy_parameters": len(task.seeds[0].start),
        "oracles": oracles,
        "policies": rows(trained, len(setting.policy_rates), BASELINES),
    }


def main(argv=None):
    given = parser(__doc__).parse_args(argv)
    setting = QUICK if given.quick else Setting()
    write_result(given, "world_smaller_oracle.json", setting, partial(measured, setting))


if __name__ == "__main__":
    main()
