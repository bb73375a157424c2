"""Charts of a comparison: mean curves by step and by time, and results by selected share."""

import numpy as np
import pytest

from sepo.report.charts import table
from sepo.report.compared import ResultPoint, curves, mean_log, result_charts, selected_share, with_seconds
from sepo.report.drawing import figure


def log(scale):
    entries = [
        {
            "step": step,
            "loss": scale * step,
            "rewards/accuracies": 0.5,
            "rewards/margins": scale,
            "select/chosen_ratio": 0.2,
        }
        for step in (1, 2, 3)
    ]
    entries.insert(2, {"step": 2, "eval_rewards/accuracies": 0.75 * scale})
    return with_seconds(entries, {1: 10.0 * scale, 3: 30.0 * scale})


def test_a_mean_is_over_the_seeds_at_steps_and_metrics_of_all():
    assert mean_log([log(1.0), log(0.5)[:3]]) == [
        {"step": 1, "loss": 0.75, "rewards/accuracies": 0.5, "rewards/margins": 0.75, "select/chosen_ratio": 0.2,
         "seconds": 7.5},
        {"step": 2, "loss": 1.5, "rewards/accuracies": 0.5, "rewards/margins": 0.75, "select/chosen_ratio": 0.2,
         "eval_rewards/accuracies": 0.5625},
    ]  # fmt: skip
    assert mean_log([log(1.0), []]) == []


def test_curves_are_by_step_and_by_seconds_where_they_are_known():
    drawn = {chart.key: chart for chart in curves({"dpo": mean_log([log(1.0)]), "sepo": mean_log([log(0.5)])})}
    assert list(drawn) == [
        f"comparison-{metric}-{axis}" for metric in ("rewards-accuracies", "rewards-margins", "loss")
        for axis in ("step", "seconds")
    ]  # fmt: skip
    by_step, by_seconds = drawn["comparison-loss-step"], drawn["comparison-loss-seconds"]
    assert [line.label for line in by_step.lines] == ["dpo", "sepo"]
    assert [line.x.tolist() for line in by_step.lines] == [[1, 2, 3], [1, 2, 3]]
    assert [line.y.tolist() for line in by_step.lines] == [[1, 2, 3], [0.5, 1, 1.5]]
    assert [line.x.tolist() for line in by_seconds.lines] == [[10, 30], [5, 15]]
    assert [line.y.tolist() for line in by_seconds.lines] == [[1, 3], [0.5, 1.5]]
    assert (by_seconds.x_label, by_seconds.title) == ("seconds of training", "Loss by seconds of training")
    accuracy = drawn["comparison-rewards-accuracies-step"]
    assert [(line.label, line.style) for line in accuracy.lines if line.style == "points"] == [
        ("dpo, evaluation", "points"), ("sepo, evaluation", "points")
    ]  # fmt: skip
    without = [chart.key for chart in curves({"dpo": [{"step": 1, "loss": 0.5}]})]
    assert without == ["comparison-loss-step"]


def results(*values):
    return {f"v{index}": ResultPoint(value, value - 0.1, value + 0.1) for index, value in enumerate(values)}


def by_share(found, shares, seconds=(), **changed):
    named = {f"v{index}": share for index, share in enumerate(shares) if share is not None}
    timed = {f"v{index}": time for index, time in enumerate(seconds)}
    return result_charts(
        "accuracy", "accuracy", found, **{"shares": named, "seconds": timed, "baseline": "v0", **changed}
    )


def test_a_result_is_drawn_with_its_interval_over_the_selected_share():
    (chart,) = by_share(results(0.5, 0.75, 0.625), [1.0, 0.25, None])
    assert [(line.label, line.colour, line.x.tolist(), line.y.tolist()) for line in chart.lines] == [
        ("v0", "0", [1.0], [0.5]), ("v1", "1", [0.25], [0.75]),
    ]  # fmt: skip
    (axes,) = figure(chart).axes
    segments = np.array([collection.get_segments()[0] for collection in axes.collections])
    assert segments == pytest.approx(np.array([[[1, 0.4], [1, 0.6]], [[0.25, 0.65], [0.25, 0.85]]]))
    assert table(chart).columns == ["curve", "selected share", "accuracy", "from", "to"]
    assert table(chart).rows == [["v0", "100 %", "50 %", "40 %", "60 %"], ["v1", "25 %", "75 %", "65 %", "85 %"]]


def test_equal_shares_have_no_chart_and_times_of_two_variants_have_one():
    assert by_share(results(0.5, 0.75), [0.3, 0.3004]) == []
    assert by_share(results(0.5), [0.3], [5.0]) == []
    (chart,) = by_share(results(0.5, 0.75), [1.0, 1.0], [50.0, 20.0])
    assert chart.key == "comparison-accuracy-by-seconds"
    assert [line.x.tolist() for line in chart.lines] == [[50.0], [20.0]]


def test_a_result_without_an_interval_is_a_point():
    (chart,) = by_share({"v0": ResultPoint(0.5, None, None), "v1": ResultPoint(0.7, 0.6, 0.8)}, [1.0, 0.3])
    assert table(chart).rows[0] == ["v0", "100 %", "50 %", "–", "–"]
    figure(chart)


def test_more_variants_than_colors_are_two_groups():
    shares = [1.0, 0.9, 0.1, 0.7, 0.3, 0.5, 0.6]
    (chart,) = by_share(results(*(0.1 * index for index in range(7))), shares)
    assert [line.label for line in chart.lines] == ["v0", "other variants"]
    assert chart.lines[1].x.tolist() == sorted(shares[1:])
    assert chart.lines[1].y.tolist() == pytest.approx([0.2, 0.4, 0.5, 0.6, 0.3, 0.1])


def test_the_selected_share_is_the_mean_of_both_sides():
    both = [{"step": step, "select/chosen_ratio": 0.2 * step, "select/rejected_ratio": 0.6} for step in (1, 2)]
    assert selected_share(both) == pytest.approx(0.45)
    assert selected_share([{"step": 1, "loss": 0.5}]) == 1.0
    assert selected_share([]) is None
