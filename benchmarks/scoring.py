"""Oracle scoring against the SePO authors' implementation, on a real small model and real pairs, in the same run.

    python benchmarks/scoring.py --dtype bf16     # writes benchmarks/results/scoring-smollm2-<dtype>-<processor>.json
    python benchmarks/scoring.py --shape tiny --rows 8 --rounds 2    # a smoke test, on random weights and tokens

SmolLM2-135M-Instruct (the demonstration's model, converted offline under ~/.cache/sepo/demo) is the base, a copy with
seeded noise is the oracle; the pairs are gsm8k_pairs, in the model's chat template. It runs on a GPU if there is one.
Three implementations score the same pairs, other ones in every round, in rotating order:

- authors: one sequence at a time through both models, logits of all tokens, in float32 for the log-softmax;
- ours (sepo): sequences of similar length in batches with a budget of padded tokens, the head on response tokens, in
  chunks;
- ours, one by one: sepo without batching (one sequence at a time), to isolate the effect of the head.

Tokens per second count prompts and responses of both sides, without padding, once (each goes through two models). Peak
memory is that of scoring above the two models: of the GPU in this process, otherwise of a separate process for each
implementation.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sepo.errors import SepoError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATASET = "gsm8k_pairs"
AUTHORS, OURS, OURS_SINGLE = "authors", "ours", "ours, one by one"
WAYS = (AUTHORS, OURS, OURS_SINGLE)
NOISE = 1e-3
TINY = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}  # fmt: skip
TOLERANCE = {"fp32": 1e-4, "bf16": 0.5}


def models(options, device):
    """Return the oracle and its base, frozen."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    torch.manual_seed(0)
    if options.shape == "tiny":
        base = LlamaForCausalLM(LlamaConfig(**TINY)).to(dtype)
    else:
        from sepo.demo.model import default_model_directory, prepare_model

        base = AutoModelForCausalLM.from_pretrained(prepare_model(default_model_directory()), dtype=dtype)
    base = base.eval().requires_grad_(False).to(device)
    oracle = copy.deepcopy(base)
    for parameter in oracle.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        parameter.add_(NOISE * noise.to(parameter))
    return oracle, base


def sequences(options):
    """Return sequences for all rounds: the chosen and the rejected response of each pair in turn."""
    from sepo.forward.sequences import ScoredSequence

    draw = random.Random(options.seed)
    wanted = options.rows * options.rounds
    if options.shape == "tiny":
        made = []
        for _ in range(2 * wanted):
            ids = [draw.randrange(TINY["vocab_size"]) for _ in range(draw.randrange(20, 120))]
            made.append(ScoredSequence(ids, len(ids) // 3))
        return made
    from transformers import AutoTokenizer

    from sepo.demo.model import default_model_directory, prepare_model
    from sepo.training import encode_pairs

    file = options.data_dir / f"{DATASET}.json"
    if not file.is_file():
        raise SepoError(f"--data-dir {options.data_dir} has no {file.name}; name the directory that has it.")
    rows = json.loads(file.read_text(encoding="utf-8"))
    if wanted > len(rows):
        raise SepoError(f"--rows {options.rows} times --rounds {options.rounds} are more than {len(rows)} pairs.")
    tokenizer = AutoTokenizer.from_pretrained(prepare_model(default_model_directory()))
    pairs = [
        {"prompt": row["conversations"][0]["value"], **{side: row[side]["value"] for side in ("chosen", "rejected")}}
        for row in draw.sample(rows, wanted)
    ]
    encoded = encode_pairs(pairs, tokenizer, max_tokens=1024)
    return [
        ScoredSequence([*row["prompt_ids"], *row[f"{side}_ids"]], len(row["prompt_ids"]))
        for row in encoded
        for side in ("chosen", "rejected")
    ]


def authors_scores(oracle, base, batch):
    """Score one sequence at a time with both models, with the logits of all tokens."""
    import torch

    scores = []
    with torch.no_grad():
        for sequence in batch:
            ids = torch.tensor([list(sequence.input_ids)], device=base.device)
            logps = []
            for model in (oracle, base):
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
                logps.append(logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0])
            scores.append((logps[0] - logps[1])[sequence.response_start - 1 :].cpu())
    return scores


def way_of(name, oracle, base, options):
    """Return a function that scores sequences."""
    import contextlib

    from sepo.forward.sequences import OracleScorer, ScoringModel

    if name == AUTHORS:
        return lambda batch: authors_scores(oracle, base, batch)
    scorer = OracleScorer(
        oracle=ScoringModel(oracle, contextlib.nullcontext),
        base=ScoringModel(base, contextlib.nullcontext),
        batch_tokens=options.batch_tokens if name == OURS else 1,
    )

    def score(batch):
        # A batch has the two responses of a pair side by side; the scorer takes all chosen ones, then all rejected.
        pairs = [*batch[::2], *batch[1::2]]
        scores = scorer.score(pairs, pairs=True)
        half = len(scores) // 2
        return [score for both in zip(scores[:half], scores[half:], strict=True) for score in both]

    return score if name == OURS else scorer.score


def timed(ways, rounds, synchronize):
    """Return the seconds of every implementation in every round, and the scores of the first round."""
    seconds, first = {name: [] for name in ways}, {}
    for way in ways.values():
        way(rounds[0])  # buffers reach their final size before anything is timed
    for number, batch in enumerate(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            synchronize()
            start = time.perf_counter()
            scores = ways[name](batch)
            synchronize()
            seconds[name].append(time.perf_counter() - start)
            first.setdefault(name, scores)
    return seconds, first


def peak(name, options, oracle, base, batch):
    """Return the peak memory of scoring above the models, in bytes, in this process."""
    import torch

    from sepo.hosts.llamafactory.bench.memory import cuda_peak, resident_peak

    way = way_of(name, oracle, base, options)
    if torch.cuda.is_available():
        return cuda_peak(lambda _: way(batch), lambda: None, batches=[0])
    both = torch.nn.ModuleList([oracle, base])
    return resident_peak(lambda _: way(batch), lambda: None, batches=[0], model=both)


def child_peak(name, argv):
    """Return the same from a separate process, as resident memory seldom shrinks."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "peak.json")
        command = [sys.executable, __file__, *argv, "--child", name, "--output", str(result)]
        quiet = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
        if done.returncode or not result.is_file():
            raise SepoError(f"the process that measures {name} failed: {done.stderr.strip().splitlines()[-1:]}")
        return json.loads(result.read_text())["peak_memory_bytes"]


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--rows", type=int, default=32, help="pairs per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=8192, help="score_batch_tokens of a recipe")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure(options, argv):
    import torch

    from sepo.hosts.llamafactory.bench.machine import machine, versions

    cuda = torch.cuda.is_available()
    oracle, base = models(options, "cuda" if cuda else "cpu")
    every = sequences(options)
    per_round = 2 * options.rows
    rounds = [every[start : start + per_round] for start in range(0, len(every), per_round)]
    tokens = [sum(len(sequence.input_ids) for sequence in batch) for batch in rounds]
    answers = [sum(sequence.response_tokens for sequence in batch) for batch in rounds]
    ways = {name: way_of(name, oracle, base, options) for name in WAYS}
    seconds, first = timed(ways, rounds, torch.cuda.synchronize if cuda else lambda: None)
    entries = []
    for name in WAYS:
        rates = [count / spent for count, spent in zip(tokens, seconds[name], strict=True)]
        ratios = [theirs / spent for theirs, spent in zip(seconds[AUTHORS], seconds[name], strict=True)]
        apart = max(
            float((ours - theirs).abs().max()) for ours, theirs in zip(first[name], first[AUTHORS], strict=True)
        )
        memory = None
        if options.memory:
            memory = peak(name, options, oracle, base, rounds[0]) if cuda else child_peak(name, argv)
        entries.append({"name": name, "seconds": seconds[name], "tokens_per_second": statistics.median(rates),
                        "ratio_to_authors": statistics.median(ratios), "largest_difference": apart,
                        "peak_memory_bytes": memory})  # fmt: skip
    setting = {name: getattr(options, name) for name in ("shape", "dtype", "rows", "rounds", "batch_tokens", "seed")}
    return {"versions": versions(), "machine": machine(cuda=cuda), "setting": setting, "dataset": DATASET,
            "rounds": [{"tokens": t, "response_tokens": a} for t, a in zip(tokens, answers, strict=True)],
            "ways": entries}  # fmt: skip


def print_result(result):
    from sepo.console import print_table, size

    machine, setting = result["machine"], result["setting"]
    where = machine["gpu"]["name"] if machine["gpu"] else f"{machine['processor']}, {machine['threads']} threads"
    title = f"{setting['rounds']} rounds of {setting['rows']} pairs, {setting['shape']}, {setting['dtype']}, on {where}"
    columns = ("way", "tokens/s", "x authors", "peak memory", "largest difference of a score")
    rows = [
        [entry["name"], f"{entry['tokens_per_second']:,.0f}", f"{entry['ratio_to_authors']:.2f}",
         "-" if entry["peak_memory_bytes"] is None else size(entry["peak_memory_bytes"]),
         f"{entry['largest_difference']:.2g}"]
        for entry in result["ways"]
    ]  # fmt: skip
    print_table(title, columns, rows)


def run(options, argv):
    for name in ("rows", "rounds", "batch_tokens", "threads"):
        if getattr(options, name) < 1:
            raise SepoError(f"--{name.replace('_', '-')} is {getattr(options, name)}; at least 1 is expected.")
    from sepo.hosts.llamafactory.recipe import quiet_on_one_device

    quiet_on_one_device()
    import torch

    torch.set_num_threads(options.threads)
    if options.child:
        oracle, base = models(options, "cpu")
        bytes_needed = peak(options.child, options, oracle, base, sequences(options)[: 2 * options.rows])
        options.output.write_text(json.dumps({"peak_memory_bytes": bytes_needed}))
        return
    from sepo.hosts.llamafactory.bench.run import write_result

    result = measure(options, argv)
    print_result(result)
    worst = max(entry["largest_difference"] for entry in result["ways"])
    if worst > TOLERANCE[options.dtype]:
        raise SepoError(f"the ways differ by {worst:.3g} in a score, expected at most {TOLERANCE[options.dtype]}.")
    where = torch.cuda.get_device_name(0).replace(" ", "-") if torch.cuda.is_available() else platform.machine()
    output = options.output or RESULTS / f"scoring-{options.shape}-{options.dtype}-{where}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(result, output)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    try:
        run(parsed(argv), argv)
    except SepoError as error:
        sys.exit(f"scoring: error: {error}")


if __name__ == "__main__":
    main()
