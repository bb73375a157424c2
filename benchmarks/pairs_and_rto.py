"""From a model and prompts to pairs, preference optimization and RTO: share of right answers before and after each.

    python benchmarks/pairs_and_rto.py            # writes benchmarks/results/pairs_and_rto-<cpu>.json and .png
    python benchmarks/pairs_and_rto.py --quick    # tiny, one seed: does everything run

The world is benchmarks/weekdays/world.py: adding days to weekdays, with two right spellings of each day and one
misconception that the SFT answers have in most of its places. Everything runs through the commands of `sepo` and the
recipes in benchmarks/weekdays/recipes, once for each seed:

1. `sepo train`, stage sft: a Llama of two layers with random weights learns the answers. It is the policy.
2. `sepo pairs`: five samples to each prompt, judged by a regular expression; a right one against a wrong one is a pair.
3. `sepo train`: the oracle, by DPO on the pairs.
4. `sepo train` from the policy: DPO, SePO (30 % of the tokens, by the oracle) and T-REG (the oracle's token rewards) on
   the pairs; RTO with the judge and the oracle on the prompts.
5. `sepo sample`: answers to held-out questions at temperature 1 and greedily, judged.

All weights are trained, with AdamW; two epochs of the pairs, one of RTO's prompts. The learning rate of each method is
the one of the grid with the highest share of right answers to the validation questions (temperature 1) with the first
seed, or as a mean over the first --tuning-seeds; of equals, the lowest. RTO without an oracle has that of RTO.
Validation and held-out questions are in no other data set.

Intervals are bootstraps over questions of the means over seeds: they are for other questions and the same trained
policies. What a seed changes is in the values of single seeds.

An interrupted run continues by the same command; finished steps are kept in --work.
"""

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from weekdays.commands import Steps
from weekdays.data import EXPECTED, HELD_OUT, VALIDATION, write_data
from weekdays.model import write_untrained
from weekdays.report import BEFORE, CONTROLS, METHODS, plot, table

from sepo.hosts.llamafactory.bench.machine import machine, versions
from sepo.intervals import Bootstrap

RESULTS = Path(__file__).parent / "results"
ONLINE = ("rto", "grpo")
MODES = {"sampled": ["--samples", "4", "--temperature", "1"], "greedy": ["--samples", "1", "--temperature", "0"]}


@dataclass(frozen=True)
class Setting:
    """Settings of this benchmark; what is not here is in the recipes.

    Args:
        seeds: seeds of the model's first weights, of all training runs and of the pairs.
        learning_rates: the grid, of every method.
        tuning_seeds: number of the seeds, from the first, with which the learning rates are chosen.
        methods: methods, each a recipe.
        moves: numbers that a question adds.
        sft: number of SFT rows.
        prompts: number of prompts for pairs and for RTO.
        validation: number of validation questions.
        held_out: number of held-out questions.
    """

    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    tuning_seeds: int
    methods: tuple[str, ...]
    moves: int
    sft: int
    prompts: int
    validation: int
    held_out: int

    @property
    def steps(self) -> int:
        """Number of commands."""
        tuning = 2 * len(self.tuned) * len(self.learning_rates) * min(self.tuning_seeds, len(self.seeds))
        return tuning + len(self.seeds) * (3 + len(self.methods) + len(MODES) * (1 + len(self.methods)))

    @property
    def tuned(self) -> tuple[str, ...]:
        """Methods whose learning rate is chosen."""
        return tuple(name for name in self.methods if name not in CONTROLS)


def answers(steps, name, policy, dataset, mode):
    """Let a policy answer the questions of a data set; return the share of right answers to each, [questions]."""
    output = f"answers/{name}"
    judge = ["--judge", "regex", "--judge-option", "whole_response=true", "--expected-column", EXPECTED]
    words = [f"model_name_or_path={policy}", f"eval_dataset={dataset}", "--max-new-tokens", "12"]
    steps.run(name, "sample", "sft", [*words, *MODES[mode], *judge, "-o", output], output=output)
    lines = (steps.folder / output / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    responses = [json.loads(line)["responses"] for line in lines]
    return np.array([np.mean([each["right"] for each in found]) for found in responses])


def prepared(steps, seed):
    """Make the policy, the pairs and the oracle of a seed; return the seconds by step and the summary of the pairs."""
    if not (steps.folder / "untrained" / "config.json").exists():
        write_untrained(steps.folder / "untrained", seed=seed)
    words = [f"seed={seed}"]
    seconds = {
        "sft": steps.run("sft", "train", "sft", words, output="sft"),
        "pairs": steps.run("pairs", "pairs", "pairs", words, output="pairs"),
        "oracle": steps.run("oracle", "train", "oracle", words, output="oracle"),
    }
    return seconds, json.loads((steps.folder / "pairs" / "summary.json").read_text(encoding="utf-8"))


def policy_name(method, rate):
    return f"{method}-{rate:g}"


def trained(steps, method, rate, seed):
    """Train a policy; return its directory and the seconds."""
    output = policy_name(method, rate)
    words = [f"learning_rate={rate:g}", f"seed={seed}", f"output_dir={output}"]
    return output, steps.run(output, "train", method, words, output=output)


def rewards(run):
    """Return the judge's mean reward of the sampled responses during training, as [step, reward]."""
    log = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [[each["step"], round(each["rewards/judge/mean"], 4)] for each in log if "rewards/judge/mean" in each]


def validated(steps, seed, setting):
    """Train every tuned method with every rate; return the shares of right validation answers, and the seconds."""
    shares, seconds = {}, {}
    for method in setting.tuned:
        for rate in setting.learning_rates:
            policy, seconds[policy_name(method, rate)] = trained(steps, method, rate, seed)
            found = answers(steps, f"{policy}-validation", policy, VALIDATION, "sampled")
            shares[method, rate] = float(found.mean())
    return shares, seconds


def chosen_rates(shares, setting):
    """Return, for each tuned method, the mean over seeds of the shares by learning rate, and the best rate."""
    found = {}
    for method in setting.tuned:
        means = {rate: float(np.mean([each[method, rate] for each in shares])) for rate in setting.learning_rates}
        found[method] = {
            "validation": [{"learning_rate": rate, "right": round(mean, 4)} for rate, mean in means.items()],
            "chosen": max(sorted(means), key=means.get),
        }
    return found


def measured(setting, work, progress):
    """Run everything; return the chosen rates, the record of each seed, and the shares [seeds, questions] by policy."""
    if not (work / "data" / "dataset_info.json").exists():
        rows = {name: getattr(setting, name) for name in ("moves", "sft", "prompts", "validation", "held_out")}
        write_data(work / "data", **rows, seed=0)
    seeds = {seed: Steps(work / f"seed-{seed}", on_step=progress) for seed in setting.seeds}
    records, validation = [], []
    for number, (seed, steps) in enumerate(seeds.items()):
        seconds, pairs = prepared(steps, seed)
        if number < setting.tuning_seeds:
            found, more = validated(steps, seed, setting)
            validation.append(found)
            seconds.update(more)
        records.append({"seed": seed, "pairs": pairs, "seconds": seconds})
    rates, shares = chosen_rates(validation, setting), {}
    for (seed, steps), record in zip(seeds.items(), records, strict=True):
        policies = {BEFORE: "sft"}
        for method in setting.methods:
            rate = rates[CONTROLS.get(method, method)]["chosen"]
            policies[method], record["seconds"][policy_name(method, rate)] = trained(steps, method, rate, seed)
        record["right"] = {name: {} for name in policies}
        record["training"] = {name: rewards(steps.folder / policies[name]) for name in ONLINE if name in policies}
        for name, policy in policies.items():
            for mode in MODES:
                found = answers(steps, f"{policy}-{mode}", policy, HELD_OUT, mode)
                shares.setdefault((name, mode), []).append(found)
                record["right"][name][mode] = round(float(found.mean()), 4)
    return rates, records, {name: np.stack(found) for name, found in shares.items()}


def summarized(shares, setting):
    """Return, for each policy, the shares of right answers and their differences to DPO."""
    bootstrap = Bootstrap(setting.held_out, samples=10_000, seed=0)

    def shown(estimate):
        return {"mean": round(estimate.value, 4), "low": round(estimate.low, 4), "high": round(estimate.high, 4)}

    summary = {}
    for (name, mode), found in shares.items():
        by_seed, questions = found.mean(1), found.mean(0)
        row = {
            **shown(bootstrap.mean(questions)),
            "lowest": round(by_seed.min(), 4),
            "highest": round(by_seed.max(), 4),
        }
        if ("dpo", mode) in shares and name not in ("dpo", BEFORE):
            baseline = shares["dpo", mode]
            row["minus_dpo"] = {
                **shown(bootstrap.difference(questions, baseline.mean(0))),
                "by_seed": [round(float(each), 4) for each in found.mean(1) - baseline.mean(1)],
            }
        summary.setdefault(name, {})[mode] = row
    return summary


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4, 1e-3])
    parser.add_argument("--tuning-seeds", type=int, default=1, help="seeds with which the learning rates are chosen")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--moves", type=int, default=8, help="numbers that a question adds")
    parser.add_argument("--sft", type=int, default=32_000, help="SFT rows")
    parser.add_argument("--prompts", type=int, default=2048, help="prompts for pairs and for RTO")
    parser.add_argument("--validation", type=int, default=300, help="questions by which learning rates are chosen")
    parser.add_argument("--held-out", type=int, default=500, help="questions of the results")
    parser.add_argument("--quick", action="store_true", help="tiny values for all of these: does everything run")
    parser.add_argument("--work", type=Path, help="directory of models, pairs and answers, kept for the next call")
    parser.add_argument("--output", type=Path, help="JSON file for the results; a plot is written next to it")
    options = parser.parse_args(argv)
    for name, other in CONTROLS.items():
        if name in options.methods and other not in options.methods:
            parser.error(f"the learning rate of {name} is that of {other}; add {other} to --methods")
    if options.quick:
        quick = {"seeds": [1], "learning_rates": [1e-4], "moves": 3, "sft": 9600, "prompts": 96, "validation": 16}
        vars(options).update(**quick, held_out=32)
    return options


def main(argv=None):
    options = parsed(argv)
    setting = Setting(**{
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name not in ("quick", "work", "output")
    })  # fmt: skip
    output = options.output or RESULTS / f"pairs_and_rto-{platform.machine()}.json"
    work = options.work or Path(tempfile.gettempdir()) / f"pairs_and_rto{'-quick' if options.quick else ''}"
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread: commands are forks of this process
    with tqdm(total=setting.steps, unit="command", file=sys.stderr) as bar:

        def progress(name):
            bar.set_postfix_str(name)
            bar.update()

        rates, seeds, shares = measured(setting, work.resolve(), progress)
    result = {
        "machine": machine(cuda=False),
        "versions": versions(),
        "setting": asdict(setting),
        "unit": "share of right answers to held-out questions",
        "learning_rates": rates,
        "summary": summarized(shares, setting),
        "seeds": seeds,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    plot(result, output.with_suffix(".png"))
    print(f"written: {output}")


if __name__ == "__main__":
    main()
