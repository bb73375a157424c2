"""Seconds before the work begins: of `sepo doctor`, of `sepo plan`, and of a training run before its first step.

    python benchmarks/start_up.py    # writes benchmarks/results/start_up-<cpu>.json; alone on the machine, 3 minutes

Each is a process of its own, in several interleaved rounds after one that is not counted (files are then in memory).
Seconds are divided as by `--timing`: imports of other packages, which take as long as the installed versions do, and
own work, that of the host included: its parser, tokenization, the trainer. SmolLM2-135M-Instruct (the demonstration's
model) with an oracle; the run has random scores and the first 16 pairs, as scores and tokens take as long as there are
rows.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_step import RESULTS, ROOT, checked_data
from train_step import recipe as step_recipe

from sepo.errors import SepoError

CASES = {
    "doctor": "`sepo doctor`",
    "plan_fits": "`sepo plan`, the recipe fits",
    "plan_does_not_fit": "`sepo plan`, it does not fit",
    "run": "a run, before its first step",
}
_SECONDS = r"([\d.]+) s \(CPU ([\d.]+) s\)"
_LINE = re.compile(rf"^timing: {_SECONDS}; imports {_SECONDS}, own work {_SECONDS}$", re.MULTILINE)
PAIRS = 16


def commands(folder, *, model, data_dir):
    """Return the command line of each case; recipes are written to a directory."""
    base = step_recipe(model, data_dir, "dpo_en_demo", "fp32")
    oracle = folder / "oracle"
    oracle.symlink_to(model)  # `sepo plan` reads its configuration only
    scored = {"oracle_model": str(oracle), "oracle_base_model": str(model)}
    trained = {
        "token_scorer": "random", "max_samples": PAIRS, "do_train": True, "max_steps": 2, "save_strategy": "no",
        "report_to": "none", "overwrite_output_dir": True, "overwrite_cache": True,
    }  # fmt: skip
    written = {}
    for name, keys in (("planned", scored), ("trained", trained)):
        written[name] = folder / f"{name}.yaml"
        written[name].write_text(json.dumps({**base, "output_dir": str(folder / "output"), **keys}))  # valid YAML
    sepo = [sys.executable, "-m", "sepo"]
    return {
        "doctor": [*sepo, "doctor", "--timing"],
        "plan_fits": [*sepo, "plan", str(written["planned"]), "--gpu", "80GiB", "--timing"],
        "plan_does_not_fit": [*sepo, "plan", str(written["planned"]), "--gpu", "1MiB", "--timing"],
        "run": [sys.executable, __file__, "--child", str(written["trained"])],
    }


def child(recipe):
    """Start a run and end the process before its first step."""
    from sepo.timing import Timing

    timing = Timing()

    def end(*arguments, **options):
        print(*timing.lines(), sep="\n", flush=True)
        os._exit(0)

    with timing.watching_imports():
        from transformers.trainer_callback import CallbackHandler

        from sepo.cli import main

        CallbackHandler.on_step_begin = end
        sys.exit(main(["train", recipe]))


def seconds_of(output):
    """Return the seconds that a command printed: total, imports and own work, by the clock and of CPU time."""
    found = _LINE.search(output)
    if found is None:
        raise SepoError(f"a command printed no line of seconds; its last: {' '.join(output.split()[-40:])}")
    numbers = [float(number) for number in found.groups()]
    return dict(zip(("total", "total_cpu", "imports", "imports_cpu", "own", "own_cpu"), numbers, strict=True))


def measured(command, *, folder, threads):
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # doctor: something is wrong with this environment
        raise SepoError(f"{' '.join(command[2:])} ended with status {done.returncode}: {done.stderr[-500:]}")
    return {"process": round(time.perf_counter() - start, 3), **seconds_of(done.stdout)}


def summary(rounds):
    """Return the rounds of a case, and the median of each number."""
    return {"median": {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}, "rounds": rounds}


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--cases", default=",".join(CASES), help="a comma-separated subset; it is not recorded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / f"start_up-{platform.machine()}.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(options):
    names = options.cases.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown or options.rounds < 1:
        raise SepoError(
            f"--cases {options.cases}, --rounds {options.rounds}: some of {','.join(CASES)}, and at least 1 are "
            "expected."
        )
    data_dir = checked_data(options.data_dir.resolve(), "dpo_en_demo")
    from sepo.demo.model import default_model_directory, prepare_model
    from sepo.hosts.llamafactory.bench.machine import machine, versions

    model = prepare_model(default_model_directory())
    found = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="sepo-start-up-") as name:
        folder = Path(name)
        lines = commands(folder, model=model, data_dir=data_dir)
        for number in range(options.rounds + 1):
            for case in names:
                one = measured(lines[case], folder=folder, threads=options.threads)
                print(f"{number} {case:18s} own work {one['own']:6.2f} s  imports {one['imports']:6.2f} s", flush=True)
                if number:
                    found[case].append(one)
    result = {
        "versions": versions(),
        "machine": {**machine(cuda=False), "threads": options.threads},
        "setting": {"rounds": options.rounds, "pairs": PAIRS},
        "titles": CASES,
        "cases": {case: summary(rounds) for case, rounds in found.items()},
    }
    if names == list(CASES):
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {options.output}")


def main(argv=None):
    options = parsed(argv)
    try:
        child(options.child) if options.child else run(options)
    except SepoError as error:
        sys.exit(f"start_up: error: {error}")


if __name__ == "__main__":
    main()
