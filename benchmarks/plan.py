"""`sepo plan` against measurements: real runs on a CPU, each in a separate process.

    python benchmarks/plan.py    # writes benchmarks/results/plan-<cpu>.json

SmolLM2-135M-Instruct (the demonstration's model, converted offline under ~/.cache/sepo/demo) and pairs that fill the
cutoff. The measured value is the growth of a process's resident memory from after its imports to its peak in a run of
two steps, scoring included; the planned value is the highest phase of the plan. The 160 MiB that a plan adds for a
process besides its tensors were fitted here; the rest is not fitted. Nothing has been measured on a GPU yet.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from sepo.errors import SepoError

RESULTS = Path(__file__).parent / "results"
# Freed blocks that glibc keeps would hide or add a fifth of a step.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
CASES = {
    "sepo, LoRA": {"token_scorer": "random"},
    "sepo with an oracle, LoRA": {"oracle_model": "ORACLE", "oracle_base_model": "MODEL"},
    "selective_dpo, LoRA, a reference": {"stage": "selective_dpo", "ref_model": "ORACLE"},
    "minor_dpo, LoRA, no checkpointing": {
        "stage": "minor_dpo", "disable_gradient_checkpointing": True, "cutoff_len": 256,
    },
    "sepo, all weights": {"token_scorer": "random", "finetuning_type": "full", "cutoff_len": 256},
    "sepo, QLoRA": {"token_scorer": "random", "quantization_bit": 4, "quantization_method": "bnb", "cutoff_len": 256},
    "sepo, LoRA, bf16": {
        "token_scorer": "random", "bf16": True, "cutoff_len": 128, "per_device_train_batch_size": 1,
    },
}  # fmt: skip


def recipe_of(changes, *, model, oracle, folder):
    base = {
        "model_name_or_path": str(model), "template": "smollm", "dataset_dir": str(folder), "dataset": "long_pairs",
        "cutoff_len": 512, "stage": "sepo", "do_train": True, "finetuning_type": "lora", "lora_rank": 8,
        "lora_target": "all", "per_device_train_batch_size": 2, "max_steps": 2, "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": str(folder / "output"), "token_scores_dir": str(folder / "scores"), "report_to": "none",
        "use_cpu": True, "overwrite_output_dir": True, "kept_activations_mb": 0,
    }  # fmt: skip
    named = {"ORACLE": str(oracle), "MODEL": str(model)}
    return {**base, **{key: named.get(str(value), value) for key, value in changes.items()}}


def save_pairs(folder):
    draw = random.Random(0)
    words = "the of and to in is that for it as was with on by at from we can be or".split()  # noqa: SIM905

    def text():
        return " ".join(draw.choice(words) for _ in range(700))

    rows = [
        {"conversations": [{"from": "human", "value": "Go on."}], "chosen": {"from": "gpt", "value": text()},
         "rejected": {"from": "gpt", "value": text()}}
        for _ in range(8)
    ]  # fmt: skip
    (folder / "long_pairs.json").write_text(json.dumps(rows))
    info = {"long_pairs": {"file_name": "long_pairs.json", "ranking": True, "formatting": "sharegpt", "columns": {
        "messages": "conversations", "chosen": "chosen", "rejected": "rejected"}}}  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))


def save_oracle(model, folder):
    """Write the model with noise, so that its scores are not all zero."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        for name, weight in weights.items():
            if name.endswith("mlp.down_proj.weight"):
                weight.mul_(1.01)
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def measured(recipe, folder):
    """Return the growth of resident memory of a run, in bytes."""
    file = folder / "recipe.json"
    file.write_text(json.dumps(recipe))
    environment = {**os.environ, **MALLOC, "PLAN_RESULT": str(folder / "grown")}
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(file)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SepoError(f"a run ended with status {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    return int((folder / "grown").read_text())


def child(file):
    import gc

    import torch
    from llamafactory.train import tuner

    import sepo.hosts.llamafactory.plan.out_of_memory
    import sepo.hosts.llamafactory.workflow  # noqa: F401
    from sepo.hosts.llamafactory.bench.memory import resident
    from sepo.hosts.llamafactory.registration import register

    torch.set_num_threads(2)
    register(tuner)
    gc.collect()
    before = resident("VmRSS")
    tuner.run_exp(json.loads(Path(file).read_text()))
    Path(os.environ["PLAN_RESULT"]).write_text(str(resident("VmHWM") - before))


def planned(recipe):
    from sepo.hosts.llamafactory.plan.account import account_for
    from sepo.hosts.llamafactory.plan.recipe import planned_run

    return account_for(planned_run(recipe), on_gpu=False)


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", help=f"a comma-separated subset of the numbers 1 to {len(CASES)}")
    parser.add_argument("--output", type=Path, default=RESULTS / f"plan-{platform.machine()}.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(options):
    from sepo.demo.model import default_model_directory, prepare_model
    from sepo.hosts.llamafactory.bench.machine import machine

    model = prepare_model(default_model_directory())
    wanted = [int(number) for number in options.cases.split(",")] if options.cases else range(1, len(CASES) + 1)
    results = []
    with tempfile.TemporaryDirectory(prefix="sepo-plan-") as name:
        folder = Path(name)
        save_pairs(folder)
        oracle = save_oracle(model, folder / "oracle")
        for number, (case, changes) in enumerate(CASES.items(), start=1):
            if number not in wanted:
                continue
            recipe = recipe_of(changes, model=model, oracle=oracle, folder=folder)
            recipe["output_dir"] += str(number)
            account, grown = planned(recipe), measured(recipe, folder)
            peak = account.peak
            results.append(
                {"case": case, "phase": peak.name, "planned": round(peak.total), "measured": grown,
                 "ratio": round(peak.total / grown, 3), "items": {key: round(size) for key, size in peak.items.items()}}
            )  # fmt: skip
            print(f"{case:36s} {peak.name:22s} planned {peak.total / 2**20:8,.0f} MiB  measured "
                  f"{grown / 2**20:8,.0f} MiB  ratio {peak.total / grown:.2f}", flush=True)  # fmt: skip
    if len(results) < len(CASES):
        return  # a subset of the cases is not recorded
    options.output.write_text(json.dumps({"machine": machine(cuda=False), "cases": results}, indent=1) + "\n")
    print(f"written: {options.output}")


def main(argv=None):
    options = parsed(argv)
    try:
        child(options.child) if options.child else run(options)
    except SepoError as error:
        sys.exit(f"plan: error: {error}")


if __name__ == "__main__":
    main()
