"""Tables of the results of `oracle_smollm2.py` in docs/train_an_oracle.md."""

NAMES = {"Wrong-Name": "names", "Wrong-Word": "words", "Wrong-Number": "numbers", "Wrong-Polarity": "opposites"}


def table(result):
    """Return the measurements as a Markdown table."""
    columns = (
        "base, steps at rate", "oracle", "pairs", "steps", "rate", "beta", "`pref_ftx`", "AUROC", *NAMES.values(),
        "first error", "margin", "chosen log-ratio",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for one in result["measurements"]:
        arm, found = one["arm"], one["auroc"]
        base = f"{arm['base_steps']} at {arm['base_rate']:.0e}" if arm["base_steps"] else "none"
        cells = (
            base,
            arm["kind"],
            f"{arm['pairs']}{', balanced' if arm['balanced'] else ''}",
            f"{one['step']} of {arm['steps']}",
            f"{arm['rate']:.0e}",
            f"{arm['beta']:g}" if arm["kind"] != "sft_contrast" else "",
            f"{arm['anchor']:g}" if arm["anchor"] else "",
            f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})",
            *(f"{one['by_type'][kind]['mean']:.2f}" for kind in NAMES),
            f"{one['first_error']['mean']:.2f}",
            f"{one['proxies']['margin']:.1f}",
            f"{one['proxies']['chosen_log_ratio']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def correlation_table(result):
    """Return the rank correlations of proxies with credit as a Markdown table, the most predictive one first."""
    found = result["correlations"]
    order = sorted(found["auroc"], key=lambda name: -abs(found["auroc"][name]))
    counts = {name: sum(name in one["proxies"] for one in result["measurements"]) for name in order}
    lines = ["| on held-out pairs, without marks | AUROC | first error | rows |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {found['auroc'][name]:+.2f} | {found['first_error'][name]:+.2f} | {counts[name]} |"
        for name in order
    ]
    return "\n".join(lines) + "\n"
