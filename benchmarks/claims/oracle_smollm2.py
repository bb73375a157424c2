"""How to train an oracle: settings of an oracle of SmolLM2-135M, and how well its scores find known errors.

    python benchmarks/claims/oracle_smollm2.py            # trains what was not measured yet; two hours on one core
    python benchmarks/claims/oracle_smollm2.py --summary  # prints the table of docs/train_an_oracle.md

On 120 generated validation pairs in which names, numbers, opposites and other words are wrong about equally often; none
of their prompts and responses is in the training pairs (`fluent_pairs` and more of its generator) or in
`fluent_heldout`. The latter is measured by benchmarks/credit.py, with the setting that is best here.

Result file, benchmarks/claims/results/oracle_smollm2.json: ``date``, ``versions``, ``machine``; ``pairs`` (validation
pairs) and ``measurements``: ``arm`` (the settings, see ``fluent_oracles.Arm``), ``step``, ``seconds`` of the whole arm,
the measures of `sepo credit` on rejected responses with their intervals, AUROC ``by_type`` of error, and ``proxies``,
what held-out pairs show without marks (``fluent_oracles.proxies``); ``correlations`` (Spearman) of proxies with AUROC
and first error over all measurements. It is written after every arm, so that an interrupted study resumes.
"""

import argparse
import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.fluent_oracles import TYPES, VALIDATION_PAIRS, Arm, Study, measured
from claims.oracle_tables import NAMES, correlation_table, table
from sepo.errors import SepoError

RESULT = Path(__file__).parent / "results" / "oracle_smollm2.json"
WORK = Path.home() / ".cache" / "sepo" / "claims" / "oracle_smollm2"
RECOMMENDED = Arm("recommended", base_steps=60, base_rate=5e-4, rate=5e-4, anchor=1.0, measured=(50,))
ARMS = (
    Arm("before", base_steps=30, base_rate=2e-4, pairs=120, steps=30, rate=2e-4),
    replace(RECOMMENDED, name="no anchor", anchor=0.0, steps=200),
    replace(RECOMMENDED, name="200 pairs", pairs=200, steps=50, measured=(25,)),
    RECOMMENDED,
)
TARGETS = ("auroc", "first_error")


def correlations(measurements):
    """Return Spearman's correlation of each proxy with credit, by target and proxy, over the rows that have it."""
    from scipy.stats import spearmanr

    found = {target: {} for target in TARGETS}
    for proxy in sorted({name for one in measurements for name in one["proxies"]}):
        rows = [one for one in measurements if proxy in one["proxies"]]
        values = [one["proxies"][proxy] for one in rows]
        for target in TARGETS:
            credit = [one[target]["mean"] for one in rows]
            found[target][proxy] = round(float(spearmanr(values, credit).statistic), 3) if len(rows) > 2 else 0.0
    return found


def recorded():
    """Return the measurements of the result file, none if there is none."""
    return json.loads(RESULT.read_text(encoding="utf-8"))["measurements"] if RESULT.is_file() else []


def write(measurements):
    """Write the result file."""
    from sepo.hosts.llamafactory.bench.machine import machine, versions
    from sepo.hosts.llamafactory.bench.run import write_result

    order = {arm.name: place for place, arm in enumerate(ARMS)}
    rows = sorted(measurements, key=lambda one: (order.get(one["arm"]["name"], len(order)), one["step"]))
    about = {"date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(), "versions": versions()}
    about |= {"machine": machine(cuda=False), "pairs": VALIDATION_PAIRS}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_result({**about, "correlations": correlations(rows), "measurements": rows}, RESULT)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK, help="directory of the bases (default: %(default)s)")
    parser.add_argument("--summary", action="store_true", help="print the recorded results")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="names of the arms to train (default: all)")
    options = parser.parse_args(argv)
    measurements = recorded()
    if options.summary:
        result = {"measurements": measurements, "correlations": correlations(measurements)}
        print(table(result), correlation_table(result), sep="\n")
        return
    study = Study(options.work)
    for arm in ARMS:
        if arm.name in {one["arm"]["name"] for one in measurements} or arm.name not in (options.only or [arm.name]):
            continue
        for step, seconds, ratios in study.run(arm):
            measurements.append(measured(arm, step, seconds, study.pairs.validation, ratios))
            one = measurements[-1]
            types = {NAMES[kind]: one["by_type"][kind]["mean"] for kind in TYPES}
            print(arm.name, step, one["auroc"], types, one["proxies"], flush=True)
        write(measurements)


if __name__ == "__main__":
    try:
        main()
    except SepoError as error:
        sys.exit(f"oracle_smollm2: error: {error}")
