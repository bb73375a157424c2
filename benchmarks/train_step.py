"""The training step of each stage against LLaMA-Factory's dpo and simpo, and TRL's own dpo, on real data.

    python benchmarks/train_step.py --dtype fp32    # writes benchmarks/results/train_step-<dataset>-<dtype>-<cpu>.json
    python benchmarks/train_step.py --dtype fp32 --shape qwen3_moe --stages host_dpo,sepo,dpo
    make train-step ARGS="--dataset hh_harmless"    # with TRL's dpo, in an environment of its own

SmolLM2-135M-Instruct (the demonstration's model, converted offline under ~/.cache/sepo/demo), or four layers of
Qwen3-MoE or Qwen3.5 with random weights (`random_models.py`); LoRA of rank 8 on all linear layers, pairs truncated to
512 tokens, 2 pairs per step, gradient checkpointing as by LLaMA-Factory's default, on the CPU. Measured as in `sepo
bench`: forward and backward passes of the trainers' training steps, interleaved, on the same batches, without optimizer
steps; tokens are selected by random scores, as many as with an oracle's. `whole_cost.py` adds what the oracle costs.

`--trl PYTHON` adds the DPO of TRL 1.16 in a process of that interpreter, which computes one step when it is its turn;
its loss on the first batch must be LLaMA-Factory's.
"""

import argparse
import platform
import sys
from pathlib import Path

import trl_process
from random_models import SMALL, small_model

from sepo.errors import SepoError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATASETS = ("dpo_en_demo", "hh_harmless")


SMOLLM2 = "smollm2"


def recipe(model, data_dir, dataset, dtype):
    chosen = {
        "model_name_or_path": str(model),
        "template": "smollm",
        "dataset_dir": str(data_dir),
        "dataset": dataset,
        "cutoff_len": 512,
        "stage": "sepo",
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "per_device_train_batch_size": 2,
        "use_cpu": True,
    }
    return {**chosen, "bf16": True} if dtype == "bf16" else chosen


def checked_data(folder, dataset):
    for name in ("dataset_info.json", f"{dataset}.json"):
        if not (folder / name).is_file():
            raise SepoError(
                f"--data-dir {folder} has no {name}: a directory with dataset_info.json and the ranking data set "
                f"{dataset}.json, as LLaMA-Factory has them, is expected."
            )
    return folder


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--dataset", choices=DATASETS, default=DATASETS[0])
    parser.add_argument("--shape", choices=(SMOLLM2, *SMALL), default=SMOLLM2)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", help="a comma-separated subset, as for `sepo bench`")
    parser.add_argument("--trl", type=Path, metavar="PYTHON", help="interpreter of an environment with TRL 1.16")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "sepo" / "bench", help="directory for random weights"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def check_trl(python, *, dtype, stages):
    if python is None:
        return
    if dtype != "fp32":
        raise SepoError(f"--trl with --dtype {dtype}: losses are compared in float32; pass --dtype fp32.")
    if stages is not None and "host_dpo" not in stages:
        raise SepoError(f"--trl with --stages {','.join(stages)}: its loss is compared with host_dpo's; add that.")
    if not python.is_file():
        raise SepoError(f"--trl {python} is no interpreter; `make train-step` makes the environment of TRL.")


def model_of(options):
    """Return the directory of the model."""
    from sepo.demo.model import default_model_directory, prepare_model

    real = prepare_model(default_model_directory())
    if options.shape == SMOLLM2:
        return real
    return small_model(options.shape, cache=options.cache, tokenizer_of=real)


def run(options):
    data_dir = checked_data(options.data_dir.resolve(), options.dataset)
    stages = options.stages.split(",") if options.stages else None
    check_trl(options.trl, dtype=options.dtype, stages=stages)
    from sepo.hosts.llamafactory.recipe import quiet_on_one_device

    quiet_on_one_device()
    import torch

    from sepo.hosts.llamafactory.bench.external import no_externals
    from sepo.hosts.llamafactory.bench.report import print_result
    from sepo.hosts.llamafactory.bench.run import measure, write_result

    torch.set_num_threads(options.threads)
    result = measure(
        recipe(model_of(options), data_dir, options.dataset, options.dtype),
        rounds=options.rounds,
        names=stages,
        memory=options.memory,
        externals=trl_process.opened(options.trl) if options.trl else no_externals,
    )
    result["setting"]["shape"] = options.shape
    print_result(result)
    if options.trl:
        trl_process.check(result)
    shape = "" if options.shape == SMOLLM2 else f"{options.shape}-"
    name = f"train_step-{shape}{options.dataset}-{options.dtype}-{platform.machine()}.json"
    output = options.output or RESULTS / name
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(result, output)


def main(argv=None):
    try:
        run(parsed(argv))
    except SepoError as error:
        sys.exit(f"train_step: error: {error}")


if __name__ == "__main__":
    main()
