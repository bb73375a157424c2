"""The tables of `sepo compare`."""

from sepo.evaluation.comparison import MEASURES
from sepo.evaluation.comparison_report import (
    measure_label,
    measure_rows,
    measured_variants,
    preference_rows,
    print_comparison,
)


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def values():
    mean = {"accuracy": estimate(0.6), "accuracy_length_normalized": estimate(0.5), "right": None,
            "tokens": estimate(12.0)}  # fmt: skip
    variants = {
        "dpo": {"run": "dpo", "seeds": {"1": {}, "2": {}}, "mean": mean, "difference": None, "validation": None,
                "failed": {}},
        "sepo": {"run": "sepo-lr=1", "seeds": {"1": {}}, "mean": mean, "difference": {"accuracy": estimate(0.25)},
                 "validation": {"sepo-lr=1": {"1": 0.5}}, "failed": {"sepo-lr=1-2": "ValueError: no"}},
        "other": {"run": "other", "seeds": {"1": {}}, "mean": mean, "difference": None, "validation": None,
                  "failed": {}},
        "lost": {"run": None, "seeds": {}, "mean": None, "difference": None, "validation": None,
                 "failed": {"lost-1": "[1/2] out of memory"}},
    }  # fmt: skip
    settings = {"baseline": "dpo", "seeds": [1, 2], "confidence": 0.95, "choose_by": "accuracy"}
    return {"variants": variants, "settings": settings, "data": {"pairs": 24, "dataset": "held"}}


def test_measures_that_no_variant_has_are_no_columns():
    columns, rows = preference_rows(values())
    assert columns == ["variant", "seeds", "accuracy", "difference"]
    assert rows[:2] == [
        ["dpo", "2 of 2", "60.0% [50.0, 70.0]", ""],
        ["sepo", "1 of 2", "60.0% [50.0, 70.0]", "+25.0 points [+15.0, +35.0]"],
    ]
    evaluated = {name: each for name, each in values()["variants"].items() if each["mean"]}
    assert measure_rows(evaluated) == (
        ["variant", "tokens per answer"], [[name, "12.0 [11.9, 12.1]"] for name in evaluated]
    )  # fmt: skip


def test_accuracy_per_token_is_shown_without_a_reference():
    found = values()
    for each in found["variants"].values():
        if each["mean"]:
            each["mean"] = {name: value for name, value in each["mean"].items() if name != "accuracy"}
    assert preference_rows(found)[0][2] == "accuracy per token"


def test_choices_missing_differences_and_errors_are_lines(capsys):
    print_comparison(values())
    shown = capsys.readouterr().out
    assert "24 pairs of held; differences to dpo, paired by row; 95% intervals over rows" in " ".join(shown.split())
    assert "sepo: sepo-lr=1 was chosen by accuracy on validation rows" in shown
    assert "other: no difference to dpo, which has other rows or no result" in shown
    assert "failed: sepo-lr=1-2: ValueError: no" in shown
    assert "failed: lost-1: [1/2] out of memory" in shown


def test_every_measure_of_every_variant_has_its_mean_difference_and_seeds():
    found = values() | {"measures": dict.fromkeys(MEASURES, "")}
    found["variants"]["sepo"]["difference"] = {"accuracy": estimate(0.25), "tokens": estimate(0.05)}
    found["variants"]["sepo"]["seeds"] = {"1": {"accuracy": 0.6, "tokens": 12.0}}
    rows = {(row.measure, row.variant): row for row in measured_variants(found)}
    assert list(rows) == [
        (measure, variant) for measure in ("accuracy", "accuracy_length_normalized", "tokens")
        for variant in ("dpo", "sepo", "other")
    ]  # fmt: skip
    sepo = rows["accuracy", "sepo"]
    assert (sepo.mean, sepo.difference) == ("60.0% [50.0, 70.0]", "+25.0 points [+15.0, +35.0]")
    assert (sepo.differs, sepo.seeds) == (True, ["60.0%", ""])
    tokens = rows["tokens", "sepo"]
    assert (tokens.mean, tokens.difference, tokens.differs) == ("12.0 [11.9, 12.1]", "+0.050 [-0.050, +0.150]", False)
    assert tokens.seeds == ["12.0", ""]
    assert (rows["accuracy", "dpo"].difference, rows["accuracy", "dpo"].differs) == ("", False)


def test_an_interval_that_ends_at_zero_does_not_exclude_it():
    found = values() | {"measures": {"accuracy": ""}}
    for low, high, differs in ((-0.2, -0.1, True), (0.0, 0.2, False), (-0.2, 0.0, False), (None, None, False)):
        found["variants"]["sepo"]["difference"] = {"accuracy": {"value": 0.1, "low": low, "high": high}}
        assert [row.differs for row in measured_variants(found)] == [False, differs, False]


def test_measures_have_different_names_in_words():
    assert len({measure_label(name) for name in MEASURES}) == len(MEASURES)
    assert not [name for name in MEASURES if "_" in measure_label(name)]
