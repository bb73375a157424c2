"""The training step of each stage against LLaMA-Factory's dpo and simpo, on a real small model and real data.

    python benchmarks/train_step.py --dtype bf16    # writes benchmarks/results/train_step-<dataset>-<dtype>-<cpu>.json

SmolLM2-135M-Instruct (the demonstration's model, converted offline under ~/.cache/sepo/demo), LoRA of rank 8 on all
linear layers, pairs truncated to 512 tokens, 2 pairs per step, gradient checkpointing as by LLaMA-Factory's default, on
the CPU. Measured as in `sepo bench`: forward and backward passes of the trainers' training steps, interleaved, on the
same batches, without optimizer steps; tokens are selected by random scores, as many as with an oracle's.
"""

import argparse
import platform
import sys
from pathlib import Path

from sepo.errors import SepoError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATASETS = ("dpo_en_demo", "hh_harmless")


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
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", help="a comma-separated subset, as for `sepo bench`")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def run(options):
    data_dir = checked_data(options.data_dir.resolve(), options.dataset)
    from sepo.hosts.llamafactory.recipe import quiet_on_one_device

    quiet_on_one_device()
    import torch

    from sepo.demo.model import default_model_directory, prepare_model
    from sepo.hosts.llamafactory.bench.report import print_result
    from sepo.hosts.llamafactory.bench.run import measure, write_result

    torch.set_num_threads(options.threads)
    model = prepare_model(default_model_directory())
    result = measure(
        recipe(model, data_dir, options.dataset, options.dtype),
        rounds=options.rounds,
        names=options.stages.split(",") if options.stages else None,
        memory=options.memory,
    )
    print_result(result)
    name = f"train_step-{options.dataset}-{options.dtype}-{platform.machine()}.json"
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
