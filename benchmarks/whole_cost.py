"""What SePO costs as a whole: oracle trained, pairs scored, policy trained, against training the policy with DPO.

    python benchmarks/whole_cost.py --dataset hh_harmless    # writes benchmarks/results/whole_cost-<dataset>-<cpu>.json

All rates are measured in the same rounds, interleaved, on the same batches (models and data as in train_step.py, in
float32): the training step of LLaMA-Factory's dpo, of sepo's dpo, which trains the oracle, and of sepo; the scoring of
the batch by an oracle and its base, which share one set of weights; and an AdamW step on the trained weights, which is
the same for all. From the seconds per pair, for N pairs and k policies that are trained with the scores of one oracle:

    cost of SePO(k) = S N E (dpo + update) + N score + k N (sepo + update)
    cost of DPO(k)  = k N (baseline dpo + update)

with the share S of the pairs and the epochs E that the oracle is trained for (`oracle_sample_ratio` and its
`num_train_epochs`), one epoch of each policy, and `update` the seconds of an optimizer step by the pairs of one. Oracle
and policy have the same size here; a smaller oracle costs less in proportion. The oracle's base is the model itself
(`base: false`): SFT on the chosen responses is not included. The oracle has paid for itself at the first k with a cost
not above DPO's.
"""

import argparse
import contextlib
import math
import platform
import sys
import tempfile
import time
from pathlib import Path

import trl_process
from random_models import SMALL
from train_step import DATASETS, RESULTS, ROOT, SMOLLM2, check_trl, checked_data, model_of, recipe

from sepo.errors import SepoError

SCORING, UPDATE = "scoring", "optimizer_step"
STAGES = ("host_dpo", "dpo", "sepo")


class Scoring:
    """Scores of a batch by an oracle (an adapter) and its base, as before training, for `measure`."""

    name, label = SCORING, "scores by oracle and base"

    def __init__(self, session, folder):
        import torch
        from llamafactory.hparams import ModelArguments

        import sepo.hosts.llamafactory.scoring_models  # noqa: F401  registers how the host loads models
        from sepo.forward.sequences import DEFAULT_BATCH_TOKENS, OracleScorer
        from sepo.recipe.model_specs import ModelSpec, OracleSpec
        from sepo.scoring.models import load_scoring_models

        session.model.save_pretrained(folder)
        base = session.model.peft_config["default"].base_model_name_or_path
        spec = OracleSpec(oracle=ModelSpec(base, (str(folder),)), base=ModelSpec(base))
        arguments = ModelArguments(model_name_or_path=base)
        oracle, base = load_scoring_models(spec, model_args=arguments, device=torch.device("cpu"))
        self.scorer = OracleScorer(oracle=oracle, base=base, batch_tokens=DEFAULT_BATCH_TOKENS)
        self.batches = [self._sequences(rows) for rows in session.rows]
        self.facts = {"batch_tokens": DEFAULT_BATCH_TOKENS}

    @staticmethod
    def _sequences(rows):
        from sepo.forward.sequences import ScoredSequence
        from sepo.training.trainable_rows import response_start

        return [
            ScoredSequence(row[f"{side}_input_ids"], response_start(row[f"{side}_labels"]))
            for side in ("chosen", "rejected")
            for row in rows
        ]

    def step(self, batch):
        self.scorer.score(self.batches[batch], pairs=True)

    def settle(self):
        pass

    def peak_memory(self, batches):
        return None


class Update:
    """An AdamW step on copies of the trained weights, for `measure`."""

    name, label, facts = UPDATE, "optimizer step", {}

    def __init__(self, session):
        import torch

        from sepo.hosts.llamafactory.bench.session import trainable

        self.weights = [weight.detach().clone().requires_grad_() for weight in trainable(session.model)]
        for weight in self.weights:
            weight.grad = torch.full_like(weight, 1e-6)
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-6)

    def step(self, batch):
        self.optimizer.step()

    def settle(self):
        pass

    def peak_memory(self, batches):
        return None


def opened(trl):
    """Return what `measure` takes as `externals`: scoring, the optimizer, and TRL's dpo if there is an interpreter."""

    @contextlib.contextmanager
    def externals(session):
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sepo-oracle-"))
            others = stack.enter_context(trl_process.opened(trl)(session)) if trl else []
            yield [Scoring(session, Path(folder)), Update(session), *others]

    return externals


def per_pair(result):
    """Return the seconds per pair of each contender over all rounds, and the seconds of an optimizer step."""
    pairs = sum(entry["pairs"] for entry in result["rounds"])
    found = {entry["name"]: sum(entry["seconds"]) / pairs for entry in result["contenders"]}
    found[UPDATE] *= pairs / len(result["rounds"])
    return found


def costs(seconds, *, baseline, pairs, share, oracle_epochs, pairs_per_update):
    """Compute the parts of the cost of both methods, in seconds.

    Args:
        seconds: per pair, of `dpo`, `sepo`, the baseline and `scoring`; of an `optimizer_step`, per step.
        baseline: the contender that DPO is trained with.
        pairs: number N of pairs.
        share: share S of the pairs that the oracle is trained on.
        oracle_epochs: its epochs E.
        pairs_per_update: pairs of an optimizer step.

    Returns:
        Seconds of `oracle`, `scoring`, `sepo` and `dpo` (one policy each), and `paid_after_runs`: the number of
        policies from which on SePO costs no more, or None if a policy of SePO costs as much as one of DPO.
    """
    update = seconds[UPDATE] / pairs_per_update
    oracle = share * pairs * oracle_epochs * (seconds["dpo"] + update)
    scoring = pairs * seconds[SCORING]
    sepo, dpo = (pairs * (seconds[name] + update) for name in ("sepo", baseline))
    runs = math.ceil((oracle + scoring) / (dpo - sepo)) if dpo > sepo else None
    return {"oracle": oracle, "scoring": scoring, "sepo": sepo, "dpo": dpo, "paid_after_runs": runs}


def total(cost, method, runs):
    """Return the seconds of k policies by `sepo` or `dpo`."""
    return runs * cost[method] + (cost["oracle"] + cost["scoring"] if method == "sepo" else 0)


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--dataset", choices=DATASETS, default=DATASETS[0])
    parser.add_argument("--shape", choices=(SMOLLM2, *SMALL), default=SMOLLM2)
    parser.add_argument("--pairs", type=int, default=10_000, help="number of pairs to compute the cost for")
    parser.add_argument("--oracle-share", type=float, default=0.7, help="oracle_sample_ratio of a pipeline")
    parser.add_argument("--oracle-epochs", type=float, default=1.0)
    parser.add_argument("--pairs-per-update", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trl", type=Path, metavar="PYTHON", help="interpreter of an environment with TRL 1.16")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "sepo" / "bench", help="directory for random weights"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def check(options):
    for name in ("pairs", "pairs_per_update", "oracle_epochs"):
        value = getattr(options, name)
        if not value > 0:
            raise SepoError(f"--{name.replace('_', '-')} is {value}; a number above 0 is expected.")
    if not 0 < options.oracle_share <= 1:
        raise SepoError(f"--oracle-share is {options.oracle_share}; a number in (0, 1] is expected.")
    check_trl(options.trl, dtype="fp32", stages=STAGES)


def print_costs(result):
    from sepo.console import print_lines, print_table

    columns = ("runs", "SePO", "DPO", "SePO / DPO")
    for baseline, cost in result["costs"].items():
        runs = sorted({1, 2, 3, 5, 10, *([cost["paid_after_runs"]] if cost["paid_after_runs"] else [])})
        rows = [
            [str(k), f"{total(cost, 'sepo', k):,.0f} s", f"{total(cost, 'dpo', k):,.0f} s",
             f"{total(cost, 'sepo', k) / total(cost, 'dpo', k):.2f}"]
            for k in runs
        ]  # fmt: skip
        print_lines(
            [
                f"{result['setting']['pairs']:,} pairs, against {baseline}: oracle {cost['oracle']:,.0f} s and scores "
                f"{cost['scoring']:,.0f} s, once"
            ]
        )
        print_table(None, columns, rows)


def run(options):
    check(options)
    data_dir = checked_data(options.data_dir.resolve(), options.dataset)
    from sepo.hosts.llamafactory.recipe import quiet_on_one_device

    quiet_on_one_device()
    import torch

    from sepo.hosts.llamafactory.bench.report import print_result
    from sepo.hosts.llamafactory.bench.run import measure, write_result

    torch.set_num_threads(options.threads)
    started = time.time()
    result = measure(
        recipe(model_of(options), data_dir, options.dataset, "fp32"),
        rounds=options.rounds,
        names=STAGES,
        memory=False,
        externals=opened(options.trl),
    )
    print_result({**result, "contenders": [entry for entry in result["contenders"] if entry["name"] != UPDATE]})
    if options.trl:
        trl_process.check(result)
    seconds = per_pair(result)
    given = {
        "pairs": options.pairs,
        "share": options.oracle_share,
        "oracle_epochs": options.oracle_epochs,
        "pairs_per_update": options.pairs_per_update,
    }
    result["setting"] |= {"shape": options.shape, **given, "seconds_measured": time.time() - started}
    result["seconds_per_pair"] = seconds
    baselines = [name for name in ("host_dpo", trl_process.NAME, "dpo") if name in seconds]
    result["costs"] = {name: costs(seconds, baseline=name, **given) for name in baselines}
    print_costs(result)
    shape = "" if options.shape == SMOLLM2 else f"{options.shape}-"
    output = options.output or RESULTS / f"whole_cost-{shape}{options.dataset}-{platform.machine()}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(result, output)


def main(argv=None):
    try:
        run(parsed(argv))
    except SepoError as error:
        sys.exit(f"whole_cost: error: {error}")


if __name__ == "__main__":
    main()
