"""MinorDPO's claim: when DPO decreases the log-probabilities of chosen responses, MinorDPO preserves them.

    python benchmarks/stability.py    # minutes on one CPU core; writes benchmarks/results/stability-<cpu>.json and .png

Source: MinorDPO (arXiv 2408.09834), Figures 2 to 5: rewards over training for DPO and for MinorDPO at two learning
rates, linear decay after a warm-up of 0.1, similar responses in each pair (MetaMath answers, the rejected one with a
corrupted calculation). This benchmark is a small version. A Llama of two layers is trained by SFT to answer with the
running sums modulo 10 of the digits of a question, on answers in which every digit is wrong with some probability, so
that it has the uncertainty of a language model. A pair is the right answer and a copy with one wrong digit. The SFT
model is the initial policy and the reference; AdamW, gradients clipped to norm 1. The learning rates suit a model of
this size, and are not the paper's.

Measured on training and held-out pairs: the mean of log pi - log pi_ref over chosen and over rejected responses (nats
per response, without beta), the share of pairs with a positive margin, and the share of questions that greedy decoding
answers correctly in every digit.
"""

import argparse
import contextlib
import copy
import json
import os
import platform
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, get_linear_schedule_with_warmup

import sepo
from sepo.forward import selected_log_probs
from sepo.objectives import resolve_method
from sepo.training import PairCollator, preference_step

OBJECTIVES = ("dpo", "minor_dpo")
START, ANSWER, END, FIRST_DIGIT = 0, 1, 2, 3
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Setting:
    """Settings of this benchmark."""

    learning_rates: tuple[float, ...]
    seeds: int
    pairs: int
    epochs: int
    batch: int
    beta: float
    digits: int
    noise: float
    sft_steps: int
    sft_batch: int = 32
    sft_learning_rate: float = 3e-3
    held_out: int = 128
    measurements: int = 8


def right_answer(question):
    answer, total = [], 0
    for digit in question:
        total = (total + digit) % 10
        answer.append(total)
    return answer


def corrupted(answer, draw, place):
    """Return the answer with another digit at one position; the following digits are unchanged."""
    wrong = list(answer)
    wrong[place] = (wrong[place] + draw.randrange(1, 10)) % 10
    return wrong


def prompt_ids(question):
    return [START, *(FIRST_DIGIT + digit for digit in question), ANSWER]


def answer_ids(answer):
    return [*(FIRST_DIGIT + digit for digit in answer), END]


def make_pairs(count, digits, draw):
    rows = []
    for _ in range(count):
        question = [draw.randrange(10) for _ in range(digits)]
        right = right_answer(question)
        wrong = corrupted(right, draw, draw.randrange(digits))
        ids = {"prompt_ids": prompt_ids(question), "chosen_ids": answer_ids(right), "rejected_ids": answer_ids(wrong)}
        rows.append(ids)
    return rows


def scheduled(model, learning_rate, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    return optimizer, get_linear_schedule_with_warmup(optimizer, max(1, steps // 10), steps)


def update(model, optimizer, schedule, loss):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def pretrained(setting, seed, progress):
    """Return a small Llama after SFT on noisy answers."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    config = LlamaConfig(
        vocab_size=FIRST_DIGIT + 10, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=START, eos_token_id=END, pad_token_id=START,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer, schedule = scheduled(model, setting.sft_learning_rate, setting.sft_steps)
    for _ in range(setting.sft_steps):
        rows = []
        for _ in range(setting.sft_batch):
            question = [draw.randrange(10) for _ in range(setting.digits)]
            answer = right_answer(question)
            for place in range(setting.digits):
                if draw.random() < setting.noise:
                    answer = corrupted(answer, draw, place)
            rows.append(prompt_ids(question) + answer_ids(answer))
        ids = torch.tensor(rows)
        start = setting.digits + 2
        logits = model(ids).logits[:, start - 1 : -1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, start:].flatten())
        update(model, optimizer, schedule, loss)
        progress.update()
    return model.eval()


@torch.no_grad()
def log_probs(model, batch):
    """Return summed log-probabilities of the responses [2B] in nats, and whether greedy decoding generates each."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    wanted = batch["labels"][:, 1:] != -100
    logps = selected_log_probs(model, inputs, labels=batch["labels"], wanted=wanted).sum(-1)
    likeliest = model(**inputs).logits[:, :-1].argmax(-1)
    return logps, ((likeliest == batch["labels"][:, 1:]) | ~wanted).all(-1)


def measured(model, reference, batches):
    """Return means over the pairs of each batch, by name."""
    result = {}
    for name, batch in batches.items():
        (logps, greedy), (ref_logps, _) = log_probs(model, batch), log_probs(reference, batch)
        chosen, rejected = (logps - ref_logps).chunk(2)
        result[name] = {
            "chosen": chosen.mean().item(),
            "rejected": rejected.mean().item(),
            "accuracy": (chosen > rejected).float().mean().item(),
            "answered_right": greedy.chunk(2)[0].float().mean().item(),
        }
    return result


def run(objective, learning_rate, seed, reference, setting, progress):
    """Train one policy; return the measurements during training."""
    method = resolve_method(objective, beta=setting.beta)
    collate = PairCollator(method)
    draw = random.Random(1000 + seed)
    rows = make_pairs(setting.pairs, setting.digits, draw)
    held_out = make_pairs(setting.held_out, setting.digits, draw)
    batches = {"trained": collate(rows[: setting.held_out]), "held_out": collate(held_out)}
    model = copy.deepcopy(reference).train()
    starts = range(0, len(rows) - setting.batch + 1, setting.batch)
    steps = setting.epochs * len(starts)
    optimizer, schedule = scheduled(model, learning_rate, steps)
    every = max(1, steps // setting.measurements)
    curve = [{"step": 0, **measured(model, reference, batches)}]
    for step in range(1, steps + 1):
        if (step - 1) % len(starts) == 0:
            draw.shuffle(rows)
        start = starts[(step - 1) % len(starts)]
        batch = collate(rows[start : start + setting.batch])
        output = preference_step(model, batch, method=method, reference=lambda: contextlib.nullcontext(reference))
        update(model, optimizer, schedule, output.loss)
        if step % every == 0 or step == steps:
            curve.append({"step": step, **measured(model, reference, batches)})
        progress.update()
    return {"objective": objective, "learning_rate": learning_rate, "seed": seed, "curve": curve}


def summarized(runs, setting):
    """Return final values of the runs: mean, lowest and highest over seeds, by data, objective and learning rate."""
    rows = []
    for data in ("trained", "held_out"):
        for rate in setting.learning_rates:
            for objective in OBJECTIVES:
                ends = [
                    one["curve"][-1][data]
                    for one in runs
                    if (one["objective"], one["learning_rate"]) == (objective, rate)
                ]
                row = {"data": data, "learning_rate": rate, "objective": objective}
                for name in ("chosen", "rejected", "accuracy", "answered_right"):
                    values = [end[name] for end in ends]
                    row[name] = {"mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}
                rows.append(row)
    return rows


def verdict(summary, data):
    """Return the learning rates at which chosen responses end below the reference with DPO, and above with MinorDPO."""
    chosen = {(row["learning_rate"], row["objective"]): row["chosen"] for row in summary if row["data"] == data}
    rates = sorted({rate for rate, _ in chosen})
    falls = [rate for rate in rates if chosen[rate, "dpo"]["mean"] < 0]
    kept = [rate for rate in falls if chosen[rate, "minor_dpo"]["mean"] >= 0]
    every = [rate for rate in kept if chosen[rate, "dpo"]["highest"] < 0 <= chosen[rate, "minor_dpo"]["lowest"]]
    return {"dpo_falls_at": falls, "minor_dpo_stays_up_at": kept, "in_every_seed_at": every}


def machine():
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.platform(),
        "python": platform.python_version(), "torch": torch.__version__, "sepo": sepo.__version__,
    }  # fmt: skip


def table(result):
    lines = [f"{'data':9} {'rate':>8} {'objective':10} {'chosen':>24} {'rejected':>9} {'accuracy':>9} {'right':>6}"]
    for row in result["summary"]:
        chosen = row["chosen"]
        spread = f"{chosen['mean']:+8.2f} ({chosen['lowest']:+.2f} to {chosen['highest']:+.2f})"
        ends = f"{row['rejected']['mean']:+9.2f} {row['accuracy']['mean']:9.1%} {row['answered_right']['mean']:6.0%}"
        lines.append(f"{row['data']:9} {row['learning_rate']:8.0e} {row['objective']:10} {spread:>24} {ends}")
    lines.append("chosen, rejected: mean of log pi - log pi_ref, nats per answer, at the end (lowest to highest seed).")
    right = [end["answered_right"] for end in result["reference"]]
    lines.append(f"The reference answers {sum(right) / len(right):.0%} of the held-out questions right.")
    for data, found in result["verdict"].items():
        falls, kept, every = (", ".join(f"{rate:.0e}" for rate in rates) or "none" for rates in found.values())
        lines.append(f"{data}: DPO ends below the reference at {falls}; of these MinorDPO at or above it at {kept}")
        lines[-1] += f" (in every seed: {every})."
    return "\n".join(lines)


def plot(result, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    rates = result["setting"]["learning_rates"]
    figure, rows = pyplot.subplots(
        2, len(rates), figsize=(3 * len(rates), 5.2), sharex=True, sharey=True, squeeze=False
    )
    for row, data in zip(rows, ("trained", "held_out"), strict=True):
        for axis, rate in zip(row, rates, strict=True):
            for one in result["runs"]:
                if one["learning_rate"] != rate:
                    continue
                color = "tab:red" if one["objective"] == "dpo" else "tab:blue"
                for side, style in (("chosen", "-"), ("rejected", ":")):
                    label = f"{one['objective']} {side}" if one["seed"] == 0 else None
                    steps = [point["step"] for point in one["curve"]]
                    axis.plot(steps, [point[data][side] for point in one["curve"]], style, color=color, label=label)
            axis.axhline(0, color="black", linewidth=0.5)
            axis.set_yscale("symlog", linthresh=1)
            axis.set_title(f"{data.replace('_', '-')}, learning rate {rate:.0e}", fontsize=8)
        row[0].set_ylabel("log π − log π_ref, nats per answer", fontsize=7)
    rows[0][0].yaxis.set_major_locator(ticker.FixedLocator([-30, -10, -3, -1, 0, 1, 3]))
    rows[0][0].yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    for axis in rows[-1]:
        axis.set_xlabel("step")
    rows[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=512, help="training pairs")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--digits", type=int, default=6, help="digits of a question and of its answer")
    parser.add_argument("--noise", type=float, default=0.15, help="share of wrong digits in the SFT answers")
    parser.add_argument("--sft-steps", type=int, default=1200)
    parser.add_argument("--output", type=Path, help="JSON file for the results; a plot is written next to it")
    return parser.parse_args(argv)


def main(argv=None):
    options = vars(parsed(argv))
    output = options.pop("output") or RESULTS / f"stability-{platform.machine()}.json"
    setting = Setting(**{**options, "learning_rates": tuple(options["learning_rates"])})
    one = setting.epochs * (setting.pairs // setting.batch)
    total = setting.seeds * (setting.sft_steps + len(OBJECTIVES) * len(setting.learning_rates) * one)
    runs, references = [], []
    with tqdm(total=total, unit="step", file=sys.stderr) as progress:
        for seed in range(setting.seeds):
            reference = pretrained(setting, seed, progress)
            for rate in setting.learning_rates:
                runs += [run(objective, rate, seed, reference, setting, progress) for objective in OBJECTIVES]
            references.append({"seed": seed, **runs[-1]["curve"][0]["held_out"]})
    summary = summarized(runs, setting)
    result = {
        "machine": machine(),
        "setting": asdict(setting),
        "unit": "nats per answer, log pi - log pi_ref",
        "reference": references,
        "verdict": {data: verdict(summary, data) for data in ("trained", "held_out")},
        "summary": summary,
        "runs": runs,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    try:
        plot(result, output.with_suffix(".png"))
    except ImportError:
        print("no plot: matplotlib is not installed.")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
