"""Which numbers that need no marked tokens predict an oracle's credit: rank correlations within seeds."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from scipy.stats import spearmanr

from claims.paired import over_seeds

PROXIES = (
    "preference_accuracy", "dpo_loss", "margin", "drift", "margin_over_spread", "margin_over_size", "margin_over_drift",
    "concentration", "size", "agreement", "true_accuracy",
)  # fmt: skip
TARGETS = ("auroc", "first_error")
GROUPS = {
    "DPO oracles": ("dpo",),
    "DPO oracles, all betas": ("dpo", "dpo, beta 0.01", "dpo, beta 1"),
    "all kinds": None,
}
"""Kinds of oracles whose rates, epochs and checkpoints are compared; None for all that are recorded."""


def correlations(records: Sequence[Mapping]) -> dict[str, dict]:
    """Return Spearman correlations of proxies with credit over the oracles of a seed: mean over seeds with interval.

    Args:
        records: rows of ``credit_study.records``.

    Returns:
        By group of kinds and target, by proxy: the correlation (``mean``, ``low``, ``high``), and the number of
        ``oracles`` per seed. A proxy that is constant over the oracles of a seed has none in it.
    """
    found: dict[str, dict] = {}
    for group, kinds in GROUPS.items():
        rows = [each for each in records if kinds is None or each["kind"] in kinds]
        for target in TARGETS:
            found[f"{group}: {target}"] = {
                proxy: own for proxy in PROXIES if (own := _within_seeds(rows, proxy, target)) is not None
            }
    return found


def picks(records: Sequence[Mapping], group: str = "DPO oracles, all betas") -> dict[str, dict]:
    """Return the credit of the oracle that each proxy would pick among those of a seed, mean over seeds with interval.

    The highest value is picked, of the DPO loss the lowest. ``best`` is the highest AUROC of a seed's oracles and the
    first-error accuracy of that oracle, ``mean`` the mean of all.
    """
    kinds = GROUPS[group]
    rows = [each for each in records if kinds is None or each["kind"] in kinds]
    seeds = [[each for each in rows if each["seed"] == seed] for seed in sorted({each["seed"] for each in rows})]
    found: dict[str, dict] = {}
    for proxy in PROXIES:
        if all(proxy in each for each in rows):
            sign = -1 if proxy == "dpo_loss" else 1
            taken = [max(own, key=lambda each: sign * each[proxy]) for own in seeds]
            found[proxy] = {target: over_seeds([each[target] for each in taken]) for target in TARGETS}
    best = [max(own, key=lambda each: each["auroc"]) for own in seeds]
    found["best"] = {target: over_seeds([each[target] for each in best]) for target in TARGETS}
    found["mean"] = {target: over_seeds([fmean(each[target] for each in own) for own in seeds]) for target in TARGETS}
    return found


def _within_seeds(rows: Sequence[Mapping], proxy: str, target: str) -> dict | None:
    values, counts = [], []
    for seed in sorted({each["seed"] for each in rows}):
        own = [(each[proxy], each[target]) for each in rows if each["seed"] == seed and proxy in each]
        if len(own) > 2 and all(len(set(column)) > 1 for column in zip(*own, strict=True)):
            values.append(float(spearmanr(*zip(*own, strict=True)).statistic))
            counts.append(len(own))
    return {**over_seeds(values), "oracles": round(fmean(counts))} if values else None
