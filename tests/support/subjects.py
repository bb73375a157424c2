"""Subjects of reports for tests: one like the demo's, and hostile ones."""

import re
from pathlib import Path

import numpy as np

from demo_pairs.pairs import generate_pairs
from sepo.report.compared import Cell, Opening, ResultPoint, ResultTable, curves, mean_log, result_charts
from sepo.report.subject import SHARES, Pair, Side, Spread, Subject

RATIO = 0.3


def side(text, *, low, rng, largest, end="<|im_end|>"):
    """Return a response: words as tokens, scores near 0 except in the spans of ``low``, the best selected."""
    matches = list(re.finditer(r"\s?\w+|\s?[^\w\s]", text))
    tokens = (*(match.group() for match in matches), end)
    scores = rng.normal(0.15 if largest else -0.1, 0.5, len(tokens))
    for place, match in enumerate(matches):
        if any(match.start() < stop and match.end() > start for start, stop in low):
            scores[place] -= 4 + rng.exponential(2)
    return Side(tokens, scores.astype(np.float32), best(scores, largest=largest))


def best(scores, *, largest, ratio=RATIO):
    selected = np.zeros(len(scores), bool)
    selected[np.argsort(-scores if largest else scores, kind="stable")[: max(1, int(ratio * len(scores)))]] = True
    return selected


def spread(sides, *, largest, edges):
    flat = np.concatenate([answer.scores for answer in sides]).astype(float)
    counts, _ = np.histogram(np.clip(flat, edges[0], edges[-1]), bins=edges)
    sums = []
    for answer in sides:
        ordered = np.sort(answer.scores.astype(float))
        running = np.concatenate([[0], np.cumsum(ordered[::-1] if largest else ordered)])
        sums.append(np.interp(SHARES * len(ordered), np.arange(len(running)), running))
    return Spread(len(flat), edges, counts, float(flat.mean()), float(flat.std()), np.mean(sums, axis=0))


def log(steps=60, every=5, *, seed=0):
    rng = np.random.default_rng(seed)
    entries = []
    for step in range(every, steps + 1, every):
        done = step / steps
        chosen, rejected = -2.2 + 0.6 * done + rng.normal(0, 0.1), -3.1 - 4 * done + rng.normal(0, 0.2)
        entry = {
            "step": step,
            "epoch": done,
            "time": 1.7e9 + step,
            "loss": 0.69 * np.exp(-3 * done) + abs(rng.normal(0, 0.02)),
            "grad_norm": 1.5 * np.exp(-2 * done) + abs(rng.normal(0, 0.1)),
            "learning_rate": 1e-4 * (1 - done),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": min(1.0, 0.6 + 0.5 * done),
            "select/chosen_ratio": 0.28 + rng.normal(0, 0.005),
            "select/rejected_ratio": 0.29 + rng.normal(0, 0.005),
            "select/tokens": 44.0 + 4 * rng.random(),
            "kl/chosen": 0.4 * done,
            "kl/rejected": -1.1 * done,
            "logps/chosen": -14 + done,
            "logps/rejected": -45 - 9 * done,
            "objective/rejected_clamped": max(0.0, done - 0.3),
        }
        entries.append({name: float(value) if name != "step" else value for name, value in entry.items()})
        if step % (4 * every) == 0:
            entries.append(
                {"step": step, "eval_loss": 0.6 * float(np.exp(-2 * done)), "eval_rewards/chosen": chosen - 0.2}
            )
    return [*entries, {"step": steps, "train_runtime": 91.9, "train_loss": 0.1, "total_flos": 9e12}]


def demo_pairs(rows=60, *, seed=0):
    """Return pairs of the demo's data set, as every second row of a data set with twice as many."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number, row in enumerate(generate_pairs(rows=max(250, 2 * rows)).train[:rows]):
        wrong = [(span["start"], span["end"]) for span in row["rejected_error_spans"]]
        chosen = side(row["chosen"]["value"], low=(), rng=rng, largest=True)
        rejected = side(row["rejected"]["value"], low=wrong, rng=rng, largest=False)
        pairs.append(Pair(2 * number, row["conversations"][0]["value"], chosen, rejected))
    return pairs


def demo_subject(*, name="policy", rows=60, seed=0, **changed):
    """Return a run like the demo's."""
    pairs = demo_pairs(rows, seed=seed)
    edges = np.linspace(-12, 3, 76)
    subject = {
        "name": name,
        "path": Path("/runs") / name,
        "kind": "run",
        "pairs": pairs,
        "rows": 2 * rows,
        "spreads": {
            "chosen": spread([pair.chosen for pair in pairs], largest=True, edges=edges),
            "rejected": spread([pair.rejected for pair in pairs], largest=False, edges=edges),
        },
        "scored_by": "oracle: smollm2-135m + base + oracle over smollm2-135m + base",
        "settings": {
            "sepo": "0.1.0",
            "stage": "sepo",
            "objective": "sepo",
            "hyperparameters": {"gamma": 1.0, "chosen_ratio": RATIO, "rejected_ratio": RATIO},
            "select": {"chosen_ratio": RATIO, "rejected_ratio": RATIO, "rule": "floor", "unit": "token"},
        },
        "recipe": {"stage": "sepo", "learning_rate": 1e-4, "max_steps": 60, "lora_rank": 8, "use_cpu": True},
        "log": log(seed=seed),
        "versions": {"sepo": "0.1.0", "torch": "2.11.0", "llamafactory": "0.9.5"},
    }
    return Subject(**{**subject, **changed})


ATTACK = "window.attacked = true"
HOSTILE = (
    f"</script><script>{ATTACK}</script>",
    f'<img src=x onerror="{ATTACK}">',
    f"{{{{ cycler.__init__.__globals__ }}}}{{% raw %}}${{{ATTACK}}}",
    f"--><!--<script>{ATTACK}</script>",
    f"\"'`><svg onload={ATTACK}>",
    "nul\x00 bell\x07 escape\x1b[31m",
    "surrogate \ud800 and \udfff",
    "right \u202eto left\u202c שלום \u200bzero\ufeff width",
    "separators \u2028 and \u2029 and \x85",
    f"]]></style><style>*{{display:none}}</style><script>{ATTACK}</script>",
    "$\\frac{1}{0}$ %s %(x)d \\N{DEL}",
    f"javascript:{ATTACK}",
)
"""Texts that a prompt, a response, a path, a name or a recipe can contain."""


def hostile_subject(*, name=HOSTILE[0], **changed):
    """Return a subject with an attack in each of its texts, and with scores that are not finite."""
    scores = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e-30, 5, -5, 1, 2, 3], np.float32)
    selected = np.arange(len(scores)) % 2 == 0
    pairs = [
        Pair(number, text, Side(HOSTILE, scores, selected), Side(HOSTILE[::-1], scores, ~selected))
        for number, text in enumerate(HOSTILE)
    ]
    pairs.append(Pair(-1, "", Side(("", " ", "\n", "\t", "\r\n"), scores[:5], selected[:5]), pairs[0].rejected, step=3))
    texts = dict.fromkeys(HOSTILE, "value")
    subject = {
        "name": name,
        "path": Path("/runs") / HOSTILE[1].replace("\x00", ""),
        "kind": "run",
        "pairs": pairs,
        "spreads": {
            "chosen": Spread(
                4, np.array([-1.0, 0.0, 1.0]), np.array([0, 0]), float("nan"), float("inf"), np.full(21, np.nan)
            ),
        },
        "scored_by": HOSTILE[4],
        "settings": {"stage": HOSTILE[0], "nested": {text: [text, {"deep": text}] for text in HOSTILE}, "none": None},
        "recipe": {text: text for text in HOSTILE} | {"long": "x" * 10_000, "number": float("nan")},
        "log": [
            {"step": 1, "loss": float("nan"), "rewards/chosen": float("inf"), HOSTILE[0]: 1.0, HOSTILE[7]: 2.0},
            {"step": 2, "loss": 10**400, "grad_norm": -1e300, HOSTILE[0]: 2.0, "eval_" + HOSTILE[1]: 3.0, "flag": True},
            {"loss": 1.0},
            {"step": "three", "loss": "four"},
        ],
        "versions": texts,
        "missing": HOSTILE,
    }
    return Subject(**{**subject, **changed})


def opening(names=("dpo", "sepo"), *, text="", error="sepo-2: ValueError: out of memory"):
    """Return the beginning of the page of a comparison of variants; ``text`` is added to each of its texts."""
    marked = Cell("+9.0 points [+2.0, +15.0]", "≠ 0", "the interval excludes 0")
    rows = [[Cell(names[0]), Cell("60.0% [50.0, 70.0]"), Cell("")], [Cell(names[1]), Cell("69.0%"), marked]]
    columns = ["variant", f"accuracy{text}", "difference"]
    timed = [{**entry, "seconds": 1.5 * entry["step"]} for entry in log()]
    points = {name: ResultPoint(0.6, 0.5, 0.7) for name in names}
    return Opening(
        title=f"Comparison of {', '.join(names)}",
        lead=f"24 held-out pairs{text}.",
        tables=[
            ResultTable(f"Results{text}", columns, rows, swatches=[0, 1]),
            ResultTable(f"All measures{text}", columns, rows, note=f"A note{text}."),
        ],
        charts=[
            *curves({name: mean_log([timed]) for name in names}),
            *result_charts("accuracy", f"accuracy{text}", points, shares=dict(zip(names, (1.0, 0.3), strict=True)),
                           seconds=dict.fromkeys(names, 90.0), baseline=names[0]),
        ],
        curves=f"Curves of training{text}.",
        failed=[error],
        meanings={f"accuracy{text}": f"Share of pairs{text}."},
    )  # fmt: skip
