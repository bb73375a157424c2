"""Oracles of SmolLM2-135M on fluent pairs: their pairs, base and training in one process, and the measures of each.

Models are those of benchmarks/credit.py fluent: SmolLM2-135M-Instruct in LLaMA-Factory's template `smollm`. They are
trained and measured in bfloat16, with float32 adapters.
"""

import hashlib
import json
import math
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch

from sepo.credit.evaluate import MarkedResponse, evaluate

VALIDATION_PAIRS = 120
VALIDATION_SEED, MORE_SEED = 1, 2
"""Seeds of the generator for validation pairs and for training pairs beyond those of `fluent_pairs`."""
TYPES = ("Wrong-Name", "Wrong-Word", "Wrong-Number", "Wrong-Polarity")
MEASURES = ("auroc", "recall", "first_error", "first_error_auroc")
SIDES = ("chosen", "rejected")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOP = 0.3
"""Selected share of the tokens, of which recall and concentration are."""


@dataclass(frozen=True)
class Arm:
    """One training and when it is measured.

    Args:
        name: key of its measurements.
        kind: dpo, ipo, minor_dpo (against the base); reversed (dpo minus dpo on exchanged pairs); sft_contrast (SFT on
            chosen minus SFT on rejected responses); sft (more SFT on chosen responses, against the base).
        base_steps: steps of the SFT on the chosen responses of `fluent_pairs` before it, with 8 responses each; 0 for
            none.
        base_rate: learning rate of the SFT.
        pairs: number of different training pairs.
        balanced: whether these have the four types of error about equally often.
        steps: steps of the optimizer; pairs are repeated if there are not enough.
        batch: pairs of a step.
        rate: highest learning rate, of a cosine schedule with 10 % warmup.
        beta: beta of the objective.
        anchor: weight of the mean negative log-likelihood of the chosen tokens in the loss (`pref_ftx`).
        rank: rank of the adapters of all linear layers.
        seed: of the adapters and of the order of the pairs.
        measured: steps after which it is measured; the last step always is.
    """

    name: str
    kind: str = "dpo"
    base_steps: int = 30
    base_rate: float = 2e-4
    pairs: int = 400
    balanced: bool = False
    steps: int = 100
    batch: int = 4
    rate: float = 2e-4
    beta: float = 0.5
    anchor: float = 0.0
    rank: int = 8
    seed: int = 0
    measured: tuple[int, ...] = ()


class FluentPairs:
    """Training pairs, and validation pairs that are neither among them nor in `fluent_heldout`; tokenized."""

    def __init__(self, tokenizer):
        from demo_pairs.pairs import generate_fluent_pairs

        self._tokenizer = tokenizer
        train, heldout = ([_plain(row) for row in part] for part in generate_fluent_pairs())
        self._seen = {text for row in (*train, *heldout) for text in _texts(row)}
        self.validation = self._encoded(spread(self._fresh(VALIDATION_SEED, 1200), VALIDATION_PAIRS))
        self._train, self._more = train, None

    def train(self, count, *, balanced=False):
        """Return the first training pairs, or as many with the four types about equally often."""
        if count <= len(self._train) and not balanced:
            return self._encoded(self._train[:count])
        if self._more is None:
            self._more = self._fresh(MORE_SEED, 6000)
        rows = [*self._train, *self._more]
        return self._encoded(spread(rows, count) if balanced else rows[:count])

    def _fresh(self, seed, count):
        from demo_pairs.passages import generate_passages

        rows = [_plain(row) for row in generate_passages(seed=seed, train=count, heldout=0)[0]]
        rows = [row for row in rows if not _texts(row) & self._seen]
        self._seen |= {text for row in rows for text in _texts(row)}
        return rows

    def _encoded(self, rows):
        from sepo.training import encode_pairs

        return encode_pairs(rows, self._tokenizer)


def _plain(row):
    """Return a generated row as ``encode_pairs`` reads it, with the types of its errors."""
    return {
        "prompt": row["conversations"][0]["value"],
        **{side: row[side]["value"] for side in SIDES},
        "types": [span["type"] for span in row["rejected_error_spans"]],
    }


def _texts(row):
    return {row["prompt"], row["chosen"]}


def spread(rows, count):
    """Return rows in which the four types of error are about equally often, each the first one with a rarest type."""
    totals, left, found = Counter(), list(rows), []
    while len(found) < count:
        rarest = min(TYPES, key=lambda kind: totals[kind])
        row = left.pop(next(place for place, row in enumerate(left) if rarest in row["types"]))
        totals.update(row["types"])
        found.append(row)
    return found


class Study:
    """The initial model, its pairs, and the bases with their log-probabilities, which are kept in ``work``."""

    def __init__(self, work):
        from transformers import AutoTokenizer

        from sepo.demo.model import default_model_directory, prepare_model

        torch.set_num_threads(1)
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        self.path = str(prepare_model(default_model_directory()))
        tokenizer = AutoTokenizer.from_pretrained(self.path)
        tokenizer.chat_template = TEMPLATE
        self.pairs = FluentPairs(tokenizer)

    def model(self, arm):
        """Return the model that an arm starts from."""
        if not arm.base_steps:
            return _loaded(self.path)
        folder = self.work / f"base-{arm.base_steps}-{arm.base_rate:g}"
        if not folder.is_dir():
            base = Arm("base", steps=arm.base_steps, batch=8, rate=arm.base_rate)
            model = adapted(_loaded(self.path), base)
            trained(model, base, self.pairs.train(base.pairs), sft_loss("chosen"))
            model.merge_and_unload().save_pretrained(folder)
        return _loaded(folder)

    def base_log_probs(self, arm, rows):
        """Return the base's log-probabilities of pairs, see ``log_probs``; each is computed once."""
        file = self.work / f"base-{arm.base_steps}-{arm.base_rate:g}.npz"
        known = dict(np.load(file)) if file.is_file() else {}
        missing = [row for row in rows if f"chosen-{_identity(row)}" not in known]
        if missing:
            for row, pair in zip(missing, log_probs(self.model(arm), missing), strict=True):
                known.update({f"{side}-{_identity(row)}": part for side, part in zip(SIDES, pair, strict=True)})
            np.savez(file, **known)
        return [tuple(known[f"{side}-{_identity(row)}"] for side in SIDES) for row in rows]

    def run(self, arm):
        """Train an arm; yield (step, seconds, log-ratios of the validation pairs) when it is measured.

        The log-ratios are (chosen [T], rejected [T]) of each pair, in nats.
        """
        start, second = time.perf_counter(), {}
        steps = {*arm.measured, arm.steps}
        first_part, *others = self._parts(arm)
        for part in others:
            second = {
                step: log_probs(model, self.pairs.validation) for step, model in self._trainings(arm, *part, steps)
            }
        base = None if others else self.base_log_probs(arm, self.pairs.validation)
        for step, model in self._trainings(arm, *first_part, steps):
            both = zip(log_probs(model, self.pairs.validation), second.get(step, base), strict=True)
            ratios = [tuple(a - b for a, b in zip(*pair, strict=True)) for pair in both]
            yield step, time.perf_counter() - start, ratios

    def _trainings(self, arm, rows, loss, steps):
        model = adapted(self.model(arm), arm)
        for step in trained_steps(model, arm, rows, loss):
            if step in steps:
                yield step, model

    def _parts(self, arm):
        """Return rows and loss of each model that an arm trains: the first one's scores count, less the second's."""
        rows = self.pairs.train(arm.pairs, balanced=arm.balanced)
        if arm.kind == "sft_contrast":
            return [(rows, sft_loss("chosen")), (rows, sft_loss("rejected"))]
        if arm.kind == "sft":
            return [(rows, sft_loss("chosen"))]
        names = [f"{side}_ref_logps" for side in SIDES]
        rows = [
            {**row, **dict(zip(names, map(list, pair), strict=True))}
            for row, pair in zip(rows, self.base_log_probs(arm, rows), strict=True)
        ]
        parts = [(rows, preference_loss(arm))]
        return [*parts, (_exchanged(rows), preference_loss(arm))] if arm.kind == "reversed" else parts


def _loaded(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


def _identity(row):
    """Return a hash of a pair's token ids."""
    ids = json.dumps([list(row[f"{part}_ids"]) for part in ("prompt", *SIDES)])
    return hashlib.sha256(ids.encode()).hexdigest()[:16]


def _exchanged(rows):
    """Return rows whose responses are exchanged."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    names = [(side, column) for side in SIDES for column in ("ids", "ref_logps")]
    return [{**row, **{f"{side}_{column}": row[f"{other[side]}_{column}"] for side, column in names}} for row in rows]


def _sequences(rows, side):
    from sepo.forward.sequences import ScoredSequence

    return [ScoredSequence([*row["prompt_ids"], *row[f"{side}_ids"]], len(row["prompt_ids"])) for row in rows]


def log_probs(model, rows):
    """Return the log-probabilities of the response tokens, (chosen [T], rejected [T]) of each pair."""
    from sepo.forward.sequences import LogProbScorer, ScoringModel

    model.eval()
    scorer = LogProbScorer(ScoringModel(model, nullcontext), batch_tokens=1024)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer.score([*_sequences(rows, "chosen"), *_sequences(rows, "rejected")], pairs=True)
    model.train()
    return [(found[index].numpy(), found[index + len(rows)].numpy()) for index in range(len(rows))]


def adapted(model, arm):
    """Return the model with new adapters in all linear layers but the head."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(arm.seed)
    config = LoraConfig(r=arm.rank, lora_alpha=2 * arm.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def sft_loss(side):
    """Return the mean negative log-likelihood per token of one side's responses, as a function of model and rows."""
    from sepo.forward.head import selected_log_probs
    from sepo.forward.sequences import padded_batch

    def loss(model, rows):
        inputs, labels, wanted = padded_batch(_sequences(rows, side), torch.device("cpu"))
        return -selected_log_probs(model, inputs, labels=labels, wanted=wanted).sum() / wanted.sum()

    return loss


def preference_loss(arm):
    """Return the loss of an arm's objective, as a function of model and rows."""
    from sepo.objectives import resolve_method
    from sepo.training import PairCollator, ReferenceCollator, preference_step

    method = resolve_method("dpo" if arm.kind == "reversed" else arm.kind, beta=arm.beta)
    collate = ReferenceCollator(PairCollator(method))
    return lambda model, rows: preference_step(
        model, collate(rows), method=method, chosen_nll_weight=arm.anchor
    ).loss  # fmt: skip


def trained_steps(model, arm, rows, loss):
    """Train adapters with AdamW and a cosine schedule, as the host does; yield the number of each step after it."""
    from transformers import get_cosine_schedule_with_warmup

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arm.rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.1 * arm.steps), arm.steps)
    generator = np.random.default_rng(arm.seed)
    order = []
    model.train()
    for step in range(1, arm.steps + 1):
        while len(order) < arm.batch:
            order.extend(generator.permutation(len(rows)))
        batch, order = [rows[index] for index in order[: arm.batch]], order[arm.batch :]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(model, batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step


def trained(model, arm, rows, loss):
    """Train adapters to the last step."""
    for _ in trained_steps(model, arm, rows, loss):
        pass


def measured(arm, step, seconds, rows, ratios):
    """Return one measurement of an arm: the measures of `sepo credit` and the proxies."""
    return {
        "arm": asdict(arm),
        "step": step,
        "seconds": round(seconds),
        **credit(rows, [rejected for _, rejected in ratios]),
        "proxies": proxies(ratios, arm.beta),
    }


def credit(rows, scores):
    """Return the measures of scores of the rejected responses, low = wrong; a pair differs in its wrong tokens only."""
    responses = []
    for row in rows:
        differs = np.array(row["chosen_ids"]) != np.array(row["rejected_ids"])
        types = {kind: np.zeros(len(differs), dtype=bool) for kind in TYPES}
        for place, kind in zip(np.flatnonzero(differs), row["types"], strict=True):
            types[kind][place] = True
        responses.append(MarkedResponse(differs, types))
    found = evaluate(responses, {"oracle": [scores]}, ratio=TOP, samples=1000, seed=0).as_dict()["scorers"]["oracle"]
    by_type = {kind: _rounded(found["by_type"][kind]["auroc"]) for kind in TYPES}
    return {**{name: _rounded(found[name]) for name in MEASURES}, "by_type": by_type}


def proxies(ratios, beta):
    """Return what held-out pairs show without marks.

    Args:
        ratios: log-ratios of each pair's tokens to the base, (chosen [T], rejected [T]), in nats.
        beta: beta of the loss.

    Returns:
        ``preference_accuracy``, ``dpo_loss``, ``margin`` (chosen minus rejected, sums over the response), ``drift`` (of
        the chosen response, absolute), ``chosen_log_ratio`` (the same with its sign), ``margin_over_drift``,
        ``concentration`` (share of the total absolute log-ratio in the top 30 % of a rejected response's tokens), and
        ``lowest_token_accuracy`` (share of pairs whose lowest token score is in the rejected response,
        ties one half).
    """
    chosen, rejected = (np.array([pair[side].sum() for pair in ratios]) for side in (0, 1))
    margin, drift = chosen - rejected, np.abs(chosen).mean()
    sizes = [np.sort(np.abs(scores))[::-1] for _, scores in ratios]
    tops = [size[: max(1, int(TOP * len(size)))].sum() / max(size.sum(), 1e-12) for size in sizes]
    return _rounded(
        {
            "preference_accuracy": (margin > 0).mean(),
            "dpo_loss": np.logaddexp(0, -beta * margin).mean(),
            "margin": margin.mean(),
            "chosen_log_ratio": chosen.mean(),
            "drift": drift,
            "margin_over_drift": margin.mean() / max(drift, 1e-12),
            "concentration": np.mean(tops),
            "lowest_token_accuracy": np.mean([_lower(rejected.min(), chosen.min()) for chosen, rejected in ratios]),
        }
    )


def _lower(first, second):
    return (first < second) + (first == second) / 2


def _rounded(numbers):
    return {name: round(float(value), 4) for name, value in numbers.items()}
