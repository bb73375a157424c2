"""The beginning of the page of `sepo compare`, from the contents of ``compare.json`` and the logs of its runs."""

from sepo.evaluation.comparison import MEASURES
from sepo.hosts.llamafactory.compare_page import opening


def estimate(value, spread=0.1):
    return {"value": value, "low": value - spread, "high": value + spread}


def variant(name, *, seeds=(1, 2), difference=0.0, accuracy=0.5, **changed):
    mean = {"accuracy": estimate(accuracy), "margin": estimate(1.5), "accuracy_summed": estimate(0.25)}
    return {
        "run": name, "keys": {"stage": name, "nested": {"a": [1, 2]}}, "mean": mean,
        "seeds": {str(seed): {"accuracy": accuracy + seed / 100} for seed in seeds},
        "difference": {"accuracy": estimate(difference), "margin": estimate(difference, 0.5)}, "validation": None,
        "failed": {}, **changed,
    }  # fmt: skip


def values(variants, **settings):
    settings = {"seeds": [1, 2], "baseline": "dpo", "confidence": 0.95, "choose_by": None, **settings}
    measures = {name: meaning for name, (_, meaning) in MEASURES.items()}
    return {
        "variants": variants,
        "settings": settings,
        "measures": measures,
        "data": {"pairs": 1200, "dataset": "held"},
    }


def log(ratio=None):
    selected = {} if ratio is None else {"select/chosen_ratio": ratio, "select/rejected_ratio": ratio}
    return [{"step": step, "loss": 0.5, "seconds": 2.0 * step, **selected} for step in (1, 2)]


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_results_have_means_marked_differences_seeds_and_what_was_chosen():
    chosen = {"sepo-lr=1": {"1": 0.5, "2": 0.7}, "sepo-lr=2": {"1": 0.1, "2": None}}
    variants = {
        "sepo": variant("sepo-lr=1", difference=0.2, accuracy=0.7, validation=chosen, seeds=[1],
                        failed={"sepo-lr=1-2": "ValueError: no"}),
        "dpo": variant("dpo") | {"difference": None, "validation": {"dpo": {"1": 0.4, "2": 0.4}}},
        "lost": variant("lost", seeds=[]) | {"difference": None, "mean": None},
    }  # fmt: skip
    made = opening(values(variants, choose_by="accuracy"), {"sepo": [log(0.3)], "dpo": [log(), log()]})
    results, measures, choice = made.tables
    assert results.columns == [
        "variant",
        "seeds",
        "accuracy",
        "difference",
        "by seed",
        "selected tokens",
        "chosen run",
        "keys",
    ]
    assert texts(results) == [
        ["sepo", "1 of 2", "70.0% [60.0, 80.0]", "+20.0 points [+10.0, +30.0]", "71.0%", "30 %", "sepo-lr=1",
         'stage: sepo-lr=1; nested: {"a": [1, 2]}'],
        ["dpo", "2 of 2", "50.0% [40.0, 60.0]", "", "51.0%, 52.0%", "100 %", "dpo",
         'stage: dpo; nested: {"a": [1, 2]}'],
        ["lost", "0 of 2", "", "", "", "", "lost", 'stage: lost; nested: {"a": [1, 2]}'],
    ]  # fmt: skip
    assert [row[3].mark for row in results.rows] == ["≠ 0", "", ""]
    assert results.swatches == [1, 0, None]  # the baseline is the first curve
    assert texts(measures)[:2] == [
        ["accuracy", "sepo", "70.0% [60.0, 80.0]", "+20.0 points [+10.0, +30.0]", "71.0%", ""],
        ["accuracy", "dpo", "50.0% [40.0, 60.0]", "", "51.0%", "52.0%"],
    ]
    assert texts(measures)[2][:4] == ["margin (nats)", "sepo", "+1.500 [+1.400, +1.600]", "+0.200 [-0.300, +0.700]"]
    assert measures.rows[2][3].mark == ""
    assert texts(choice) == [
        ["sepo", "sepo-lr=1", "60.0%", "50.0%", "70.0%"], ["sepo", "sepo-lr=2", "10.0%", "10.0%", ""],
        ["dpo", "dpo", "40.0%", "40.0%", "40.0%"],
    ]  # fmt: skip
    assert [row[2].mark for row in choice.rows] == ["chosen", "", "chosen"]
    assert made.failed == ["sepo-lr=1-2: ValueError: no"]
    assert set(made.meanings) == {"accuracy", "margin (nats)", "accuracy, summed"}
    assert "1,200 held-out pairs of held. Differences are to dpo" in made.lead
    assert "No difference" not in made.lead
    assert [chart.key for chart in made.charts] == [
        "comparison-loss-step", "comparison-loss-seconds", "comparison-accuracy-by-seconds",
        "comparison-accuracy-by-selected",
    ]  # fmt: skip
    assert [line.label for line in made.charts[0].lines] == ["dpo", "sepo"]
    assert [line.x.tolist() for line in made.charts[2].lines] == [[4.0], [4.0]]


def test_a_variant_with_other_rows_has_no_difference_and_the_lead_has_the_reason():
    variants = {"dpo": variant("dpo") | {"difference": None}, "other": variant("other") | {"difference": None}}
    made = opening(values(variants), {"dpo": [log()], "other": [log()]})
    assert "No difference for other: the rows have other tokens" in made.lead
    assert len(made.tables) == 2
    assert "chosen run" not in made.tables[0].columns


def test_curves_are_of_as_many_variants_as_there_are_colors():
    variants = {f"v{index}": variant(f"v{index}") for index in range(9)} | {"dpo": variant("dpo")}
    made = opening(values(variants), {name: [log(0.1 * index + 0.1)] for index, name in enumerate(variants)})
    assert made.title == "Comparison of dpo, v0, v1, v2, v3, v4, others"
    assert "Shown are 6 of 10 variants" in made.curves
    assert [line.label for line in made.charts[0].lines] == ["dpo", "v0", "v1", "v2", "v3", "v4"]
    assert sum(len(line.x) for line in made.charts[-1].lines) == 10
    assert len(made.tables[0].rows) == 10


def test_runs_without_logs_have_results_and_no_curves():
    made = opening(values({"dpo": variant("dpo") | {"difference": None}}), {"dpo": [[], []]})
    assert (made.charts, texts(made.tables[0])[0][5]) == ([], "")
