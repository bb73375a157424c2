"""Token-level credit: how well token scorers find marked errors that are obvious, fluent, or marked by humans.

    python benchmarks/credit.py demo                   # trains an oracle: 3 minutes on two cores
    python benchmarks/credit.py fluent                 # trains an oracle: 15 minutes on two cores
    python benchmarks/credit.py qa                     # 30 minutes; needs ../shared/data/qa_feedback_spans.json
    python benchmarks/credit.py board                  # writes the leaderboard's rows of the recorded results

Writes benchmarks/results/credit-<set>-smollm2-<processor>.json and .png, and rows of the leaderboard, benchmarks/credit
(`make docs` updates its table in docs/credit.md). The model is the demonstration's,
SmolLM2-135M-Instruct (converted offline under ~/.cache/sepo/demo), in float32. Every oracle is a LoRA adapter trained
on the set's training pairs, without the marks; held-out rejected responses are measured:

- demo: `demo_heldout`, words of another domain; the oracle and its base are those of
  benchmarks/credit_demo.yaml, the SePO pipeline.
- fluent: `fluent_heldout`, names, numbers and opposites that the prompt rules out. As in the SePO pipeline, the
  oracle's base is first trained on the chosen responses; surprisal is under the initial model.
- qa: every third pair of QA feedback (allenai/FineGrainedRLHF): annotators marked irrelevant, unverifiable, wrong or
  incoherent parts of a model's response, and corrected it. The other pairs train the oracle. The base is the initial
  model.

Besides the oracle: the contrastive scorer for demo and qa (the initial model with prompts for a better and for a worse
response; for the demo, its base), surprisal under the same model, and chance. A trained oracle is kept in --work and
reused.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

from sepo.errors import SepoError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QA = "qa_feedback_spans"
WORK = {"demo": "demo_output/credit_demo", "fluent": "demo_output/credit_fluent", "qa": "demo_output/credit_qa"}
SCORERS = {
    "demo": ("oracle", "contrastive", "surprisal", "random"),
    "fluent": ("oracle", "surprisal", "random"),
    "qa": ("oracle", "contrastive", "surprisal", "random"),
}
BOARD, LABEL = ROOT / "benchmarks" / "credit", "SmolLM2-135M-Instruct"
BOARD_NAMES = {"demo": "obvious", "fluent": "fluent", "qa": "qa_feedback"}
"""The leaderboard, the name of the models in it, and the names of the sets."""

HELD_OUT_ONE_IN = 3
COMMON = {
    "template": "smollm",
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "learning_rate": 2.0e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "gradient_accumulation_steps": 1,
    "seed": 42,
    "use_cpu": True,
    "disable_gradient_checkpointing": True,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
    "do_train": True,
}
"""Recipe keys shared by all trained models."""

ORACLE = {
    "stage": "minor_dpo",
    "objective": "dpo",  # plain DPO, with sepo's training step
    "pref_beta": 0.5,  # a margin of a few nats suffices; at 0.1 whole responses drift, right tokens with wrong ones
    "per_device_train_batch_size": 4,
}
BASE = {"stage": "sft", "per_device_train_batch_size": 8}
FLUENT = {"cutoff_len": 256, "learning_rate": 5.0e-4, "bf16": True}
"""Keys of both models of the fluent set; chosen by benchmarks/claims/oracle_smollm2.py, on other pairs."""
ANCHORED = {"pref_ftx": 1.0}  # without it, DPO also lowers the tokens that both responses share
STEPS = {
    "fluent": {
        "base": {**BASE, **FLUENT, "dataset": "chosen", "max_steps": 60},
        "oracle": {**ORACLE, **FLUENT, **ANCHORED, "dataset": "pairs", "max_steps": 150},
    },
    "qa": {"oracle": {**ORACLE, "dataset": "pairs", "cutoff_len": 512, "max_steps": 20}},
}
"""Training steps of each set, in order."""


def qa_rows():
    """Return training and held-out pairs of QA feedback."""
    source = ROOT.parent / "shared" / "data" / f"{QA}.json"
    if not source.is_file():
        raise SepoError(f"there is no {source}; the set qa needs it.")
    rows = json.loads(source.read_text(encoding="utf-8"))
    parts = [[row for index, row in enumerate(rows) if bool(index % HELD_OUT_ONE_IN) == kept] for kept in (True, False)]
    train, heldout = ({row["conversations"][-1]["value"] for row in part} for part in parts)
    if train & heldout:
        raise SepoError(f"a question of {source} is in both parts; the split is no longer one of questions.")
    return parts


def write_data(folder, rows, heldout):
    """Write the pairs, their chosen responses and the host's list of data sets; return the file of held-out pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    pairs = {"file_name": "pairs.json", "ranking": True, "formatting": "sharegpt", "columns": columns}
    chosen = [
        {"instruction": row["conversations"][-1]["value"], "input": "", "output": row["chosen"]["value"]}
        for row in rows
    ]
    contents = {"pairs": rows, "chosen": chosen, "heldout": heldout}
    contents["dataset_info"] = {"pairs": pairs, "chosen": {"file_name": "chosen.json"}}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder / "heldout.json"


def trained(name, folder):
    """Return the initial model and the adapters in order; train those that are missing."""
    import yaml

    from sepo.demo.model import default_model_directory, prepare_model

    model = prepare_model(default_model_directory())
    adapters = []
    for step, keys in STEPS[name].items():
        output, file = folder / step, folder / f"{step}.yaml"
        recipe = {**COMMON, **keys, "model_name_or_path": str(model), "dataset_dir": str(folder / "data")}
        recipe["output_dir"] = str(output)
        if adapters:
            recipe |= {"adapter_name_or_path": ",".join(adapters), "create_new_adapter": True}
        text = yaml.safe_dump(recipe, sort_keys=False)
        if not (output / "adapter_model.safetensors").is_file():
            file.write_text(text, encoding="utf-8")
            done = subprocess.run([sys.executable, "-m", "sepo", "train", str(file)], check=False)
            if done.returncode:
                raise SepoError(f"training failed (exit status {done.returncode}); its output is above.")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            raise SepoError(f"{output} was trained with another recipe than {file} would be; name another --work.")
        adapters.append(str(output))
    return str(model), tuple(adapters)


def request_for(name, folder):
    """Return the request: the held-out pairs of the set, and the oracle with its base."""
    from sepo.credit.scored import CreditRequest
    from sepo.credit.scorers import CreditModels
    from sepo.recipe.model_specs import ModelSpec, OracleSpec
    from sepo.runs.oracle_of_run import read_run

    if name == "demo":
        from sepo.demo.dataset import write_dataset
        from sepo.demo.model import default_model_directory, prepare_model
        from sepo.hosts.llamafactory.pipeline import read_pipeline, run_pipeline

        model, data = prepare_model(default_model_directory()), write_dataset(folder / "data")
        recipe = read_pipeline(ROOT / "benchmarks" / "credit_demo.yaml")
        paths = {"model_name_or_path": str(model), "dataset_dir": str(data), "output_dir": str(folder)}
        run_pipeline({**recipe, **paths, "token_scores_dir": str(folder / "scores")})
        run = read_run(folder)
        models = CreditModels(run.oracle.base, run.oracle, None)
        return CreditRequest(
            name, SCORERS[name], models, template=run.template, cutoff_len=run.cutoff_len, dtype=run.dtype
        )
    if name == "fluent":
        from demo_pairs.pairs import generate_fluent_pairs

        rows, heldout = generate_fluent_pairs()
    else:
        rows, heldout = qa_rows()
    source = write_data(folder / "data", rows, heldout)
    model, adapters = trained(name, folder)
    oracle = OracleSpec(ModelSpec(model, adapters), ModelSpec(model, adapters[:-1]))
    cutoff = 4 * STEPS[name]["oracle"]["cutoff_len"]  # no marked error is truncated
    models = CreditModels(ModelSpec(model, ()), oracle, None)
    return CreditRequest(
        str(source), SCORERS[name], models, template=COMMON["template"], cutoff_len=cutoff, dtype="fp32"
    )


def run(options):
    from sepo.hosts.llamafactory.recipe import load_host, quiet_on_one_device

    quiet_on_one_device()
    load_host("credit")
    from sepo.credit.data import read_pairs
    from sepo.credit.figure import draw, save
    from sepo.credit.report import print_result
    from sepo.credit.run import measure
    from sepo.hosts.llamafactory.bench.machine import machine, versions
    from sepo.hosts.llamafactory.bench.run import write_result
    from sepo.hosts.llamafactory.credit import LlamaFactoryCredit

    folder = (options.work or ROOT / WORK[options.set]).resolve()
    request = request_for(options.set, folder)
    result = measure(read_pairs(request.source), request, open_host=LlamaFactoryCredit, progress=True)
    result["data"]["source"] = {"demo": "demo_heldout", "fluent": "fluent_heldout", "qa": QA}[options.set]
    print_result(result)
    output = options.output or RESULTS / f"credit-{options.set}-smollm2-{platform.machine()}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {"date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(), "versions": versions()}
    write_result({**about, "machine": machine(cuda=False), "recipes": recipes(options.set), **result}, output)
    save(draw(result), output.with_suffix(".png"))
    add_to_board(options.set, output)


def recipes(name):
    """Return the recipes of the models by step; those of a pipeline as one."""
    import yaml

    if name == "demo":
        return {"pipeline": yaml.safe_load((ROOT / "benchmarks" / "credit_demo.yaml").read_text(encoding="utf-8"))}
    return {step: {**COMMON, **keys} for step, keys in STEPS[name].items()}


def add_to_board(name, file):
    """Write the rows of a recorded result to the leaderboard."""
    from sepo.credit.leaderboard import Row, entries, write

    result = json.loads(file.read_text(encoding="utf-8"))
    row = Row(LABEL, result["date"], result["versions"], result["recipes"] or recipes(name))
    for path in write(BOARD, entries({BOARD_NAMES[name]: result}, row)):
        print(f"written: {path}")


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("set", choices=[*WORK, "board"])
    parser.add_argument("--work", type=Path, help="directory of the oracle (default: one in demo_output)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def main(argv=None):
    try:
        options = parsed(argv)
        if options.set == "board":
            for name in WORK:
                for file in RESULTS.glob(f"credit-{name}-smollm2-*.json"):
                    add_to_board(name, file)
        else:
            run(options)
    except SepoError as error:
        sys.exit(f"credit: error: {error}")


if __name__ == "__main__":
    main()
