"""Markdown tables of the results in benchmarks/claims/results."""

from collections.abc import Iterable, Mapping, Sequence

GROUP = "DPO oracles, all betas"
ALL = {"best": "(the oracle with the highest AUROC)", "mean": "(mean of all oracles)"}
PROXY_TITLES = {
    "preference_accuracy": "preference accuracy",
    "true_accuracy": "preference accuracy, labels not flipped",
    "dpo_loss": "DPO loss (beta 0.1)",
    "margin": "margin: log-ratio of chosen minus rejected responses",
    "margin_over_spread": "margin / its standard deviation over pairs",
    "margin_over_size": "margin / mean absolute token log-ratio",
    "margin_over_drift": "margin / absolute drift",
    "drift": "drift: mean log-ratio of the chosen tokens",
    "size": "mean absolute token log-ratio",
    "concentration": "concentration: share of the absolute log-ratios in the top 30 %",
    "agreement": "agreement: rank correlation with an oracle of another order",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def interval(found: Mapping | None, *, sign: str = "", digits: int = 3) -> str:
    """Return mean and interval as text, the mean alone if it is of one seed; an empty text for None."""
    if not found:
        return ""
    if found["low"] is None:
        return f"{found['mean']:{sign}.{digits}f}"
    mean, low, high = (f"{found[name]:{sign}.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def percent(found: Mapping | None, *, sign: str = "") -> str:
    """Return mean and interval in percent."""
    hundredfold = found and {name: None if value is None else 100 * value for name, value in found.items()}
    return interval(hundredfold, sign=sign, digits=1)


def estimators(result: Mapping) -> str:
    """Return the table of all estimators, the best first."""
    rows = []
    for name, row in sorted(result["estimators"].items(), key=lambda each: -each[1]["auroc"]["mean"]):
        setting = "" if row["rate"] is None else f"{row['rate']:g}, {row['epochs']} epochs"
        if row["variant"] != name:
            setting += f" ({row['variant']})"
        rows.append([
            name, str(row["trainings"]), setting, str(row["comparisons"]), interval(row["auroc"]),
            interval(row["minus_plain"], sign="+"), interval(row["minus_surprisal"], sign="+"),
            interval(row["first_error"]),
        ])  # fmt: skip
    return table(
        ["estimator", "trainings", "chosen", "of", "AUROC", "minus DPO oracle", "minus surprisal", "first error"],
        rows,
    )  # fmt: skip


def grid(result: Mapping, names: Sequence[str]) -> str:
    """Return AUROC and first-error accuracy of some estimators by learning rate and epochs."""
    cells = result["grid"]
    rows = [
        [name, *(f"{cell[name]['held_out']:.3f} / {cell[name]['first_error']:.2f}" for cell in cells.values())]
        for name in names
    ]
    return table(["rate, epochs", *cells], rows)


def likelihood(result: Mapping) -> str:
    """Return AUROC and first-error accuracy of DPO oracles by rate, epochs and weight of the chosen likelihood."""
    rows = [
        [
            f"{row['rate']:g}, {row['epochs']} epochs", f"{row['pref_ftx']:g}", interval(row["auroc"]),
            interval(row["minus_none"], sign="+"), interval(row["first_error"]),
        ]
        for row in result["likelihood"]
    ]  # fmt: skip
    return table(["rate, epochs", "`pref_ftx`", "AUROC", "minus that without", "first error"], rows)


def data_share(result: Mapping) -> str:
    """Return the plain oracle's AUROC by number of pairs, mean over seeds."""
    epochs = [str(each) for each in result["setting"]["epochs"]]
    rows = []
    for count, found in result["data_share"].items():
        means = (sum(own["held_out"]) / len(own["held_out"]) if (own := found.get(each)) else None for each in epochs)
        rows.append([count, *("" if mean is None else f"{mean:.3f}" for mean in means)])
    return table(["pairs", *(f"{each} epochs" for each in epochs)], rows)


def proxies(result: Mapping) -> str:
    """Return the correlations of the proxies with credit over DPO oracles, and the credit of what each would pick."""
    parts = [
        (
            result[f"proxies{suffix}"][f"{GROUP}: auroc"],
            result[f"proxies{suffix}"][f"{GROUP}: first_error"],
            result[f"picks{suffix}"],
        )
        for suffix in ("", "_clean")
    ]  # fmt: skip
    rows = []
    for name, title in PROXY_TITLES.items():
        if any(name in own for own, _, _ in parts):
            row = [title]
            for auroc, first, picked in parts:
                row += [interval(own.get(name), sign="+", digits=2) for own in (auroc, first)]
                row.append(_picked(picked.get(name)))
            rows.append(row)
    rows += [
        [title, "", "", _picked(parts[0][2][name]), "", "", _picked(parts[1][2][name])] for name, title in ALL.items()
    ]
    columns = ("AUROC", "first error", "picks")
    return table(["proxy", *(f"{labels}: {column}" for labels in ("flipped", "right") for column in columns)], rows)


def _picked(found: Mapping | None) -> str:
    return f"{found['auroc']['mean']:.3f} / {found['first_error']['mean']:.2f}" if found else ""


def policies(result: Mapping) -> str:
    """Return the shares of right responses of the policies, in percent, and differences within an objective."""
    keys = ("minus_plain", "minus_random", "minus_all")
    rows = [
        [name, f"{row['rate']:g}", percent(row["right"]), *(percent(row[key], sign="+") for key in keys)]
        for name, row in result["policies"].items()
    ]
    titles = ("minus the plain oracle's", "minus random tokens", "minus all tokens")
    return table(["policy", "rate", "right", *titles], rows)


def credit_blocks(result: Mapping) -> dict[str, list[str]]:
    """Return the tables of docs/credit_estimators.md by the names of their blocks."""
    names = [name for name, row in result["estimators"].items() if row["rate"] is not None]
    tables = {
        "estimators": estimators(result),
        "grid": grid(result, names),
        "likelihood": likelihood(result),
        "data share": data_share(result),
        "proxies": proxies(result),
        "policies": policies(result),
    }
    return {name: text.splitlines() for name, text in tables.items()}


CURVE = {
    "SePO 30 %, known tokens": 1.0,
    **{f"SePO 30 %, credit of AUROC {level:g}": level for level in (0.9, 0.8, 0.7, 0.6)},
    "SePO 30 %, random tokens": 0.5,
}
"""AUROC of the credit by policy, from known tokens to chance."""
ALL_TOKENS, RANDOM_TOKENS = "DPO, all tokens", "SePO 30 %, random tokens"
ANCHOR = "pref_ftx 0.2"
"""End of the names of policies with the likelihood of the chosen responses."""


def methods(
    policies: Mapping, baselines: Sequence[str] = (ALL_TOKENS, RANDOM_TOKENS), names: Iterable[str] | None = None
) -> str:
    """Return the shares of right responses in percent, the best policy first, and the differences to the baselines.

    Policies with the likelihood of the chosen responses are compared with the baselines that have it, too.

    Args:
        policies: the rows of a result by name.
        baselines: the policies of the differences.
        names: policies of the table, without ``ANCHOR``; None for all.
    """
    wanted = policies if names is None else {each + end for each in names for end in ("", f", {ANCHOR}")}
    rows = []
    for name, row in sorted(policies.items(), key=lambda each: -each[1]["right"]["mean"]):
        if name in wanted:
            end = f", {ANCHOR}" if name.endswith(ANCHOR) else ""
            others = [each + end if each + end in policies else each for each in baselines]
            differences = [percent(row["minus"].get(each), sign="+") for each in others]
            rate = "" if row["rate"] is None else f"{row['rate']:g}"
            rows.append([name, rate, percent(row["right"]), *differences])
    return table(["policy", "rate", "right", *(f"minus {each}" for each in baselines)], rows)


def rates(result: Mapping) -> str:
    """Return the share of right responses to the validation questions by learning rate, in percent, a mean of seeds."""
    given = list(next(iter(result["policies"].values()))["validation"])
    rows = [
        [name, *(f"{100 * row['validation'][rate]:.1f}" for rate in given)] for name, row in result["policies"].items()
    ]
    return table(["policy", *(f"{float(rate):g}" for rate in given)], rows)


def curve(result: Mapping) -> str:
    """Return the right responses of SePO by the AUROC of the credit, in percent, and minus DPO on all tokens."""
    rows = []
    for name, auroc in CURVE.items():
        row = [f"{auroc:.1f}"]
        for end in ("", f", {ANCHOR}"):
            found = result["policies"][name + end]
            row += [percent(found["right"]), percent(found["minus"].get(ALL_TOKENS + end), sign="+")]
        rows.append(row)
    difference = f"minus {ALL_TOKENS}"
    columns = ["AUROC of the credit", "right", difference, f"right, {ANCHOR}", f"{difference}, {ANCHOR}"]
    return table(columns, rows)


FLIPPED = (
    *CURVE, "SePO 30 %, oracle", "SePO, all tokens", ALL_TOKENS, "DPO 30 %, oracle", "SFT on chosen",
    "MinorDPO, all tokens",
)  # fmt: skip
"""The policies of the table with wrong labels."""
SAME_SIZE = "SePO 30 %, oracle"
SMALLER_BASELINES = (SAME_SIZE, "SePO, all tokens", RANDOM_TOKENS)
WEAK_BASELINES = ("before training", ALL_TOKENS, "SePO, all tokens", RANDOM_TOKENS)


def smaller_oracles(result: Mapping) -> str:
    """Return size, quality before training, rate and AUROC of the oracles, the largest one first."""
    rows = []
    for found in result["oracles"].values():
        credit = found["credit"]["held_out"]
        right = found["right"].values()
        accuracy = max(found["accuracy"].values()) if "accuracy" in found else None
        rows.append([
            f"{found['parameters']:,}", f"{100 * sum(right) / len(right):.1f}",
            f"{found.get('rate', result['setting']['policies']['oracle']['rate']):g}",
            "" if accuracy is None else f"{100 * accuracy:.1f}",
            f"{sum(credit) / len(credit):.3f}", " ".join(f"{each:.3f}" for each in credit),
        ])  # fmt: skip
    return table(["parameters", "right after SFT", "rate", "accuracy, %", "AUROC", "AUROC by seed"], rows)


def anchors(result: Mapping) -> str:
    """Return right responses to validation questions by rate, and those to held-out ones at the best rate, in percent.

    The differences are those of the best weight of each method.
    """
    others, best = (ALL_TOKENS, RANDOM_TOKENS), result["best"]
    rates_ = [f"{each:g}" for each in result["setting"]["rates"]]
    rows = []
    for name, row in sorted(result["policies"].items(), key=lambda each: -each[1]["right"]["mean"]):
        method, _, weight = name.partition(", pref_ftx ")
        chosen = best[method]["weight"] is None or f"{best[method]['weight']:g}" == weight
        differences = [percent(best[method]["minus"].get(each) if chosen else None, sign="+") for each in others]
        shares = [f"{100 * row['validation'][rate]:.1f}" for rate in rates_]
        rows.append([name, *shares, percent(row["right"]), *differences])
    return table(["policy", *rates_, "right", *(f"minus {each}" for each in others)], rows)


def methods_blocks(result: Mapping) -> dict[str, list[str]]:
    """Return the tables of docs/evidence.md by the names of their blocks."""
    tables = {"methods": methods(result["policies"]), "rates": rates(result), "curve": curve(result)}
    return {name: text.splitlines() for name, text in tables.items()}


def flipped_blocks(result: Mapping) -> dict[str, list[str]]:
    """Return the table of docs/evidence.md with wrong labels, by the name of its block."""
    return {"flipped": methods(result["policies"], names=FLIPPED).splitlines()}


def smaller_blocks(result: Mapping) -> dict[str, list[str]]:
    """Return the tables of docs/evidence.md on smaller oracles by the names of their blocks."""
    return {
        "smaller oracles": smaller_oracles(result).splitlines(),
        "smaller oracle": methods(result["policies"], SMALLER_BASELINES).splitlines(),
    }


def weak_blocks(result: Mapping) -> dict[str, list[str]]:
    """Return the tables of docs/evidence.md on weak data by the names of their blocks."""
    return {
        f"weak data, policy {name}": methods(found, WEAK_BASELINES).splitlines()
        for name, found in result["policies"].items()
    }


def anchor_blocks(result: Mapping) -> dict[str, list[str]]:
    """Return the table of docs/evidence.md on the weight of the chosen likelihood, by the name of its block."""
    return {"anchor": anchors(result).splitlines()}


SMOLLM2_TITLES = {
    name + suffix: title + end
    for suffix, end in (("", ""), ("_ftx", f", {ANCHOR}"))
    for name, title in (("sepo", SAME_SIZE), ("sepo_random", RANDOM_TOKENS), ("dpo", ALL_TOKENS))
} | {"sft": "SFT on chosen"}
"""The variants of smollm2_methods.py, as the policies of the world are named."""


def smollm2(result: Mapping) -> str:
    """Return the shares of right responses and facts on SmolLM2 in percent, and the differences to the baselines.

    Policies with the likelihood of the chosen responses are compared with the baselines that have it, too.
    """
    before = result["before"]
    rows = []
    for name, row in sorted(result["policies"].items(), key=lambda each: -each[1]["right"]["mean"]):
        end = "_ftx" if name.endswith("_ftx") else ""
        minus = [percent(row["minus"].get(each + end, {}).get("right"), sign="+") for each in ("dpo", "sepo_random")]
        rows.append([
            SMOLLM2_TITLES[name], f"{row['rate']:g}", percent(row["right"]), percent(row["facts"]), *minus,
        ])  # fmt: skip
    rows.append(["before training", "", percent(before["right"]), percent(before["facts"]), "", ""])
    return table(["policy", "rate", "right", "right facts", f"minus {ALL_TOKENS}", f"minus {RANDOM_TOKENS}"], rows)


def smollm2_rates(result: Mapping) -> str:
    """Return the share of right facts of the answers to the validation questions by learning rate, in percent."""
    given = list(next(iter(result["policies"].values()))["validation"])
    rows = [
        [SMOLLM2_TITLES[name], *(f"{100 * row['validation'][rate]:.1f}" for rate in given)]
        for name, row in result["policies"].items()
    ]
    return table(["policy", *given], rows)


def smollm2_blocks(result: Mapping) -> dict[str, list[str]]:
    """Return the tables of docs/evidence.md on SmolLM2 by the names of their blocks."""
    tables = {"smollm2": smollm2(result), "smollm2 rates": smollm2_rates(result)}
    return {name: text.splitlines() for name, text in tables.items()}


_WARNED = ("runs that end badly", "warned of by 25 % of the steps", "by 50 %", "by the end", "other runs", "warned of")


def _warned(found: Mapping) -> list[str]:
    """Return the cells of a separation, see ``runaway.separation``."""
    shares = [*found["warned"].values(), found["false"]]
    percents = ["" if share is None else f"{100 * share:.0f} %" for share in shares]
    return [str(found["bad"]), *percents[:-1], str(found["good"]), percents[-1]]


def runaway_statistics(result: Mapping) -> str:
    """Return how well each statistic tells bad runs at its bound, on the seeds that did not choose the bound."""
    rows = [[name, f"{row['bound']:g}", *_warned(row["judged_on"])] for name, row in result["statistics"].items()]
    return table(["statistic", "bound", *_WARNED], rows)


def runaway_bounds(result: Mapping) -> str:
    """Return the same for the bounds of the statistic of the warning, up to one that warns of no good run."""
    rows = []
    for name, row in result["bounds"].items():
        rows.append([name, *_warned(row)])
        if not row["false"]:
            break
    return table(["bound, nats per token", *_WARNED], rows)


def runaway_policies(result: Mapping) -> str:
    """Return the same by policy, at the bound of the warning."""
    return table(["policy", *_WARNED], [[name, *_warned(row)] for name, row in result["policies"].items()])


def runaway_blocks(result: Mapping) -> dict[str, list[str]]:
    """Return the tables of docs/evidence.md on runs that run away by the names of their blocks."""
    tables = {
        "statistics of a run": runaway_statistics(result),
        "bounds": runaway_bounds(result),
        "warned of": runaway_policies(result),
    }
    return {name: text.splitlines() for name, text in tables.items()}


EVIDENCE = {
    "smollm2_methods.json": smollm2_blocks,
    "runaway_world.json": runaway_blocks,
    "world_methods.json": methods_blocks,
    "world_methods_flipped.json": flipped_blocks,
    "world_smaller_oracle.json": smaller_blocks,
    "world_weak_data.json": weak_blocks,
    "world_anchor.json": anchor_blocks,
}
"""The functions that return the tables of docs/evidence.md, by result file."""
