"""Which number in the log of a run shows early that the run will end badly, and from which bound on?

    python benchmarks/claims/runaway_world.py            # 15 minutes on one core; writes results/runaway_world.json
    python benchmarks/claims/runaway_world.py --quick    # two seeds, tiny sizes: does everything run

In the world of ``world_methods.py``, with its seeds, pairs, oracles and rates: policies are trained while the
statistics of ``runaway.py`` are recorded as a run would log them at every step. A run ends badly if its share of right
responses to the validation questions is lower by 0.1 than that of the same policy and seed at a lower rate or before
training. The bound of a statistic is the lowest that warns of at most 2 % of the other runs, over the first half of the
seeds; it is judged on the second half.

Result file: ``setting``, ``machine``, ``versions``, ``date``; ``start``, the shares of right responses before training;
``runs`` (by policy and rate: ``right`` by seed, and ``fall`` by part of the training and seed, the highest value of the
statistic of ``sepo.runs.runaway``); ``statistics`` (by name: ``bound``, ``chosen_on`` and ``judged_on`` with the
separation of the first and second half of the seeds, see ``runaway.separation``); ``bounds``, the separation on the
second half for every bound of that statistic; ``policies``, by policy for its bound.

An interrupted run continues by the same command; finished parts are kept in --work.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.command import parser, write_result
from claims.data import QUESTIONS
from claims.methods_study import methods
from claims.policies import BATCH
from claims.runaway import LOGGED, NATS, STATISTICS, Watch, bad_runs, highest, lowest_bound, separation
from claims.training import right_share, trained
from claims.world_methods import references
from claims.world_task import QUICK, Setting, kept_parts, prepared, progress

POLICIES = (
    "DPO, all tokens", "SePO 30 %, oracle", "SePO 30 %, known tokens", "SePO 30 %, random tokens", "SePO, all tokens",
    "SimPO, all tokens", "MinorDPO, all tokens", "Selective-DPO, reference: the model after SFT",
    "Selective-DPO, reference: the DPO oracle", "T-REG over DPO, oracle's rewards", "DPO 30 %, oracle",
    "DPO 30 %, random tokens", "DPO, all tokens, pref_ftx 0.2", "SePO 30 %, oracle, pref_ftx 0.2",
)  # fmt: skip
"""Names of policies of ``methods_study``."""


def right_shares(task, models):
    """Return the share of right responses of each model to the validation questions."""
    return right_share(task.world, task.shape, models, count=task.validation, seed=QUESTIONS["validation"]).tolist()


def recorded(task, policy, rate, on_step):
    """Train a policy of every seed at a rate; return its shares of right responses and the means of its steps."""
    runs = [policy.run(task, place, rate) for place in range(len(task.seeds))]
    batch, watch = min(BATCH, len(task.pairs[0])), Watch(runs, task.below)
    steps = task.epochs * (len(task.pairs[0]) // batch)
    models, _ = trained(task.shape, task.models, runs, steps=steps, batch=batch, on_step=on_step, watch=watch)
    return {"right": right_shares(task, models), "steps": watch.by_name()}


def measured(setting, work):
    """Run everything that is not kept yet; return the result without its frame."""
    bar = progress()
    step = partial(bar.update)
    made, kept = prepared(setting, work, step), kept_parts(work / "runaway", setting)
    task = made.task
    oracle, stronger, _ = references(made, step)
    candidates = methods(task, oracle, stronger)
    start, batch = kept.part("start", lambda: right_shares(task, task.models)), min(BATCH, setting.sizes.pairs)
    found = {}
    for name in POLICIES:
        label, referenced = name.replace(" ", "_").replace("%", ""), candidates[name].method.needs_reference
        found[name] = {}
        for rate in sorted(setting.rates):
            run = kept.part(f"run-{label}-{rate:g}", partial(recorded, task, candidates[name], rate, step))
            by_seed = [{key: values[place] for key, values in run["steps"].items()} for place in range(len(start))]
            values = [highest(each, referenced=referenced, batch=batch) for each in by_seed]
            found[name][rate] = {"right": run["right"], "highest": values}
    bar.close()
    return summary(found, start)


def summary(found, start):
    """Return the result from the recorded runs, by policy and rate, and the shares of right responses before."""
    bad = {name: bad_runs({rate: run["right"] for rate, run in own.items()}, start) for name, own in found.items()}
    half = len(start) // 2
    chosen_on, judged_on = range(half), range(half, len(start))

    def rows(statistic, seeds, names=POLICIES):
        return [
            (bad[name][rate][seed], run["highest"][seed][statistic])
            for name in names
            for rate, run in found[name].items()
            for seed in seeds
        ]

    statistics = {}
    for name, bounds in STATISTICS.items():
        bound = lowest_bound(rows(name, chosen_on), bounds)
        parts = {"chosen_on": chosen_on, "judged_on": judged_on}
        statistics[name] = {"bound": bound} | {part: separation(rows(name, own), bound) for part, own in parts.items()}
    bound = statistics[LOGGED]["bound"]
    return {
        "start": start,
        "runs": {
            name: {
                f"{rate:g}": {"right": run["right"], "fall": [each[LOGGED] for each in run["highest"]]}
                for rate, run in own.items()
            }
            for name, own in found.items()
        },
        "statistics": statistics,
        "bounds": {f"{each:g}": separation(rows(LOGGED, judged_on), each) for each in NATS},
        "policies": {name: separation(rows(LOGGED, judged_on, [name]), bound) for name in POLICIES},
    }


def main(argv=None):
    given = parser(__doc__).parse_args(argv)
    setting = QUICK if given.quick else Setting()
    write_result(given, "runaway_world.json", setting, partial(measured, setting))


if __name__ == "__main__":
    main()
