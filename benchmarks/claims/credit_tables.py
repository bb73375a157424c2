"""Rows of the result of the study of credit: what was chosen on validation pairs, and what it is on held-out pairs."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from claims.estimators import ESTIMATORS, PLAIN, SURPRISAL
from claims.paired import difference, over_seeds

PLAIN_POLICY = "plain oracle"


def estimator_rows(cells: Sequence[Mapping], without: Mapping[str, Mapping]) -> dict[str, dict]:
    """Return one row for each family of estimators, at the setting with the highest mean validation AUROC.

    Args:
        cells: results of ``credit_study.measured_cell``.
        without: credit of the estimators that need no oracle.
    """
    families: dict[str, list[tuple[str, Mapping, Mapping]]] = {}
    for cell in cells:
        for name, own in cell["estimators"].items():
            family = ESTIMATORS[name].family if name in ESTIMATORS else name
            families.setdefault(family, []).append((name, cell, own))
    rows, found = {}, {}
    for family, candidates in families.items():
        variant, cell, own = max(candidates, key=lambda each: fmean(each[2]["validation"]))
        trainings = len(ESTIMATORS[variant].members) if variant in ESTIMATORS else 1
        rows[family] = {
            "variant": variant, "rate": cell["rate"], "epochs": cell["epochs"], "comparisons": len(candidates),
            "trainings": trainings,
        }  # fmt: skip
        found[family] = own
    for name, own in without.items():
        rows[name] = {"variant": name, "rate": None, "epochs": None, "comparisons": 1, "trainings": 0}
        found[name] = own
    plain, surprisal = found[PLAIN]["held_out"], found[SURPRISAL]["held_out"]
    for name, row in rows.items():
        own = found[name]
        row["validation"] = fmean(own["validation"])
        row["auroc"], row["first_error"] = over_seeds(own["held_out"]), over_seeds(own["first_error"])
        row["by_seed"] = list(own["held_out"])
        row["minus_plain"] = difference(own["held_out"], plain) if name != PLAIN else None
        row["minus_surprisal"] = difference(own["held_out"], surprisal) if name != SURPRISAL else None
    return rows


def likelihood_rows(cells: Sequence[Mapping]) -> list[dict]:
    """Return one row for each rate, number of epochs and weight of the likelihood of the chosen responses.

    Args:
        cells: results of ``credit_study.likelihood_cell``.
    """
    return [
        {
            "rate": cell["rate"],
            "epochs": cell["epochs"],
            "pref_ftx": float(weight),
            "auroc": over_seeds(own["held_out"]),
            "first_error": over_seeds(own["first_error"]),
            "minus_none": difference(own["held_out"], cell["weights"]["0"]["held_out"]) if float(weight) else None,
        }
        for cell in cells
        for weight, own in cell["weights"].items()
    ]


def policy_rows(compared: Mapping[str, Mapping], rates: int) -> dict[str, dict]:
    """Return one row for each policy.

    Args:
        compared: results of ``policies.compared``.
        rates: number of learning rates.
    """
    rows = {}
    for name, own in compared.items():
        label = name.partition(", ")[0]
        others = {
            "minus_plain": f"{label}, {PLAIN_POLICY}",
            "minus_random": f"{label}, random tokens",
            "minus_all": f"{label.split()[0]}, all tokens",
        }
        rows[name] = {
            "rate": own["rate"],
            "comparisons": rates,
            "right": over_seeds(own["held_out"]),
            "by_seed": list(own["held_out"]),
            **{
                key: difference(own["held_out"], compared[other]["held_out"])
                if other in compared and other != name
                else None
                for key, other in others.items()
            },
            "validation": own["validation"],
        }
    return rows
