"""Table and plot of the results of `benchmarks/pairs_and_rto.py`."""

import textwrap
from pathlib import Path
from typing import Any

BEFORE = "before"
TITLES = {
    BEFORE: "before: SFT",
    "dpo": "DPO, all tokens",
    "sepo": "SePO, 30 % of the tokens",
    "treg": "T-REG, rewards of the oracle",
    "rto": "RTO, online",
    "grpo": "RTO, no oracle",
}
METHODS = tuple(TITLES)[1:]
CONTROLS = {"grpo": "rto"}
"""Methods that have the learning rate of another one, from which they differ by one thing."""

_COLUMNS = ("policy", "rate", "right, sampled", "by seed", "difference to DPO", "right, greedy", "by seed")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def interval(found: dict, *, sign: str = "") -> str:
    mean, low, high = (f"{100 * found[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(result: dict) -> str:
    """Return the results as a Markdown table; shares in percent, 95 % intervals in brackets."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    for name, modes in result["summary"].items():
        rate = "" if name == BEFORE else f"{result['learning_rates'][CONTROLS.get(name, name)]['chosen']:.0e}"
        seeds = {mode: ", ".join(percent(seed["right"][name][mode]) for seed in result["seeds"]) for mode in modes}
        sampled, greedy = modes["sampled"], modes["greedy"]
        against = interval(sampled["minus_dpo"], sign="+") if "minus_dpo" in sampled else ""
        cells = (TITLES[name], rate, interval(sampled), seeds["sampled"], against, interval(greedy), seeds["greedy"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(result: dict, path: Path) -> None:
    """Write the shares of right answers and the rewards during training as a figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.4), width_ratios=(2, 1))
    _plot_answers(result, left)
    _plot_rewards(result, right)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _plot_answers(result: dict, axis: Any) -> None:
    """Draw the shares of right answers: means with intervals, and the values of single seeds."""
    names = list(result["summary"])
    for mode, shift, color, label in (
        ("sampled", -0.15, "tab:blue", "temperature 1"),
        ("greedy", 0.15, "tab:orange", "greedy"),
    ):
        found = [result["summary"][name][mode] for name in names]
        places = [place + shift for place in range(len(names))]
        means = [100 * each["mean"] for each in found]
        ends = [[100 * abs(each["mean"] - each[end]) for each in found] for end in ("low", "high")]
        axis.bar(places, means, 0.28, yerr=ends, color=color, alpha=0.6, capsize=3, label=label)
        for seed in result["seeds"]:
            axis.plot(places, [100 * seed["right"][name][mode] for name in names], ".", color="black", markersize=4)
    axis.set_xticks(range(len(names)), [textwrap.fill(TITLES[name], 14) for name in names], fontsize=7)
    axis.set_ylabel("right answers to held-out questions, %", fontsize=7)
    axis.set_ylim(0, 100)
    axis.legend(fontsize=7)


def _plot_rewards(result: dict, axis: Any) -> None:
    """Draw the rewards of responses that are sampled during training."""
    colors = {"rto": "tab:green", "grpo": "tab:purple"}
    for seed in result["seeds"]:
        for name, curve in seed["training"].items():
            label = TITLES[name] if seed is result["seeds"][0] else None
            axis.plot(*zip(*curve, strict=True), color=colors[name], linewidth=1, label=label)
    axis.set_xlabel("step", fontsize=7)
    axis.set_ylabel("judge's reward of sampled responses, mean", fontsize=7)
    axis.legend(fontsize=7)
