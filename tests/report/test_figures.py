"""Figures show the subject's numbers, are deterministic and leave matplotlib's state unchanged."""

import dataclasses
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from sepo.report.charts import Chart, Line, table, thinned
from sepo.report.drawing import COLOURS, PNG_MARK, figure, png, svg
from sepo.report.page import charts
from sepo.report.subject import SHARES
from tests.support.subjects import HOSTILE, demo_subject, hostile_subject


@pytest.fixture(scope="module")
def subject():
    return demo_subject()


def by_key(subjects):
    return {chart.key: chart for chart in charts(subjects)}


def curves(chart):
    """Return the data of the axes, by position: of lines and of histograms."""
    (axes,) = figure(chart).axes
    drawn = [line.get_xydata() for line in axes.lines]
    steps = [patch.get_data() for patch in axes.patches if not patch.get_fill()]
    return drawn, steps


def logged(subject, name):
    return np.array([[entry["step"], entry[name]] for entry in subject.log if name in entry], float)


def test_accumulation_shows_the_subjects_numbers(subject):
    lines, _ = curves(by_key([subject])["accumulation"])
    for line, side in zip(lines, ("chosen", "rejected"), strict=False):
        np.testing.assert_array_equal(line, np.stack([SHARES, subject.spreads[side].accumulated], 1))
    np.testing.assert_array_equal(lines[2][:, 0], [0.3, 0.3])  # the selected share, marked


def test_distribution_shows_the_subjects_numbers(subject):
    _, steps = curves(by_key([subject])["distribution"])
    for drawn, side in zip(steps, ("chosen", "rejected"), strict=True):
        spread = subject.spreads[side]
        np.testing.assert_array_equal(drawn.edges, spread.edges)
        np.testing.assert_allclose(drawn.values * np.diff(spread.edges) * spread.tokens, spread.counts)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("training-loss", ("loss", "eval_loss")),
        ("training-rewards", ("rewards/chosen", "eval_rewards/chosen", "rewards/rejected")),
        ("training-rewards-accuracies", ("rewards/accuracies",)),
        ("training-rewards-margins", ("rewards/margins",)),
        ("training-select-ratio", ("select/chosen_ratio", "select/rejected_ratio")),
        ("training-kl", ("kl/chosen", "kl/rejected")),
        ("training-objective-rejected-clamped", ("objective/rejected_clamped",)),
    ],
)
def test_training_charts_show_the_logged_values(subject, key, names):
    lines, _ = curves(by_key([subject])[key])
    for line, name in zip(lines, names, strict=True):
        np.testing.assert_array_equal(line, logged(subject, name))


def test_metrics_of_weights_empty_pairs_and_sums_have_charts():
    names = ["select/chosen_effective", "select/rejected_effective", "objective/empty_pair", "objective/dpo_loss",
             "objective/tdpo1_loss", "objective/tdpo1_chosen_kl", "objective/tdpo1_rejected_kl",
             "eval_other_objective/dpo_loss", "objective/treg_loss", "eval_held_out_objective/treg_loss",
             "eval_held_out_loss"]  # fmt: skip
    log = [{"step": step, **{name: step + place for place, name in enumerate(names)}} for step in (1, 2)]
    factors = {"dpo": 0.8, "tdpo1": 0.2, "{}": 1.0}
    found = by_key([demo_subject(pairs=[], spreads={}, log=log, settings={"factors": factors})])
    titles = {key: (chart.title, len(chart.lines)) for key, chart in found.items()}
    assert titles == {
        "training-loss": ("Loss", 1),
        "training-select-effective": ("Effective tokens", 2),
        "training-objective-empty-pair": ("Pairs without selected tokens", 1),
        "training-objective-dpo-loss": ("Loss of dpo", 2),
        "training-objective-tdpo1-loss": ("Loss of tdpo1", 1),
        "training-objective-tdpo1-kl": ("KL from the reference per response, tdpo1", 2),
        "training-objective-treg-loss": ("objective/treg_loss", 2),
    }
    assert found["training-objective-empty-pair"].y_percent
    assert [line.style for line in found["training-objective-dpo-loss"].lines] == ["line", "points"]


def test_two_subjects_share_charts_and_differ_in_colour_pattern_and_name(subject):
    second = demo_subject(name="_other $\\frac", seed=1)
    found = by_key([subject, second])
    assert {"accumulation-chosen", "accumulation-rejected", "training-rewards-chosen", "training-loss"} <= set(found)
    chart = found["training-rewards-rejected"]
    drawn = figure(chart)
    lines = drawn.axes[0].lines
    for line, one in zip(lines, (subject, second), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), logged(one, "rewards/rejected"))
    assert lines[0].get_color() != lines[1].get_color()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["policy", "_other $\\frac"]


def test_a_long_name_loses_its_middle_in_a_legend():
    names = [f"/data/experiments/{'x' * 40}/learning-rate-{n}" for n in (1, 2)]
    log = [{"step": 1, "loss": 1.0}]
    (chart,) = charts([demo_subject(name=name, log=log, spreads={}) for name in names])
    (legend,) = figure(chart).legends
    assert [text.get_text() for text in legend.get_texts()] == [f"/data/experim…earning-rate-{n}" for n in (1, 2)]


def test_evaluations_of_several_data_sets_are_distinguished():
    log = [{"step": 1, "loss": 1.0, "eval_one_loss": 2.0, "eval_two_loss": 3.0, "eval_one_runtime": 9.0}]
    found = by_key([demo_subject(log=log, spreads={})])
    assert [line.label for line in found["training-loss"].lines] == ["training", "evaluation (one)", "evaluation (two)"]
    assert list(found) == ["training-loss"]


def test_other_metrics_are_plotted_without_values_that_are_not_finite():
    log = [
        {"step": step, "objective/own": value, "flag": True, "time": 5.0, "text": "x"}
        for step, value in enumerate([1.0, float("nan"), 3.0, float("inf"), 10**400, -5])
    ]
    (chart,) = charts([demo_subject(log=log, spreads={})])
    assert chart.key == "training-objective-own"
    np.testing.assert_array_equal(chart.lines[0].x, [0, 2, 5])
    np.testing.assert_array_equal(chart.lines[0].y, [1, 3, -5])


def test_metrics_with_similar_names_have_separate_charts():
    names = ["a/b", "a-b", "A b", "€", "x" * 300]
    found = charts([demo_subject(log=[{"step": 1, **dict.fromkeys(names, 1.0)}], spreads={})])
    keys = [chart.key for chart in found]
    assert sorted(keys) == [
        "training-a-b",
        "training-a-b--2",
        "training-a-b--3",
        "training-metric",
        f"training-{'x' * 60}",
    ]
    many = charts([demo_subject(log=[{"step": 1, **{f"m{n}": 1.0 for n in range(500)}}], spreads={})])
    assert len(many) == 24


def test_a_long_log_is_thinned_evenly_with_both_ends():
    log = [{"step": step, "loss": 1 / step} for step in range(1, 50_001)]
    (chart,) = charts([demo_subject(log=log, spreads={})])
    steps = chart.lines[0].x
    assert len(steps) == 600
    assert (steps[0], steps[-1]) == (1, 50_000)
    assert np.ptp(np.diff(steps)) <= 1
    shown = table(chart)
    assert len(shown.rows) == 100
    assert "100 of 600 points" in shown.note
    assert thinned(0).tolist() == []


def test_the_table_has_the_numbers_of_the_chart(subject):
    found = by_key([subject])
    rewards = table(found["training-rewards-margins"])
    assert rewards.columns == ["step", "training"]
    assert [row[0] for row in rewards.rows] == [str(step) for step in range(5, 61, 5)]
    loss = table(found["training-loss"])  # evaluations have other steps: a row for each point
    assert loss.columns == ["curve", "step", "loss"]
    assert [row[:2] for row in loss.rows if row[0] == "evaluation"] == [["evaluation", s] for s in ("20", "40", "60")]
    accumulated = table(found["accumulation"])
    assert accumulated.columns == ["share of a response's tokens", "chosen", "rejected"]
    assert [row[0] for row in accumulated.rows][:3] == ["0 %", "5 %", "10 %"]
    assert len(table(found["distribution"]).rows) == 2 * 75


def test_svg_uses_the_colors_of_the_page_and_unique_identifiers(subject):
    plots = [svg(chart) for chart in charts([subject, demo_subject(name="b", seed=1)])]
    names = []
    for plot in plots:
        root = ET.fromstring(plot)
        assert not re.search(r"#[0-9a-fA-F]{6}\b", plot)
        assert not any(colour in plot for colour in COLOURS.values())
        assert " style=" not in plot
        assert "<style" not in plot
        assert "<metadata" not in plot
        assert root.get("role") == "img"
        own = [node.get("id") for node in root.iter() if node.get("id")]
        assert root.get("aria-labelledby").split() == own[:2]
        targets = re.findall(r'(?:href="#|url\(#)([\w-]+)', plot)
        assert set(targets) <= set(own)
        names += own
    assert len(names) == len(set(names))


def test_figures_are_deterministic_and_have_no_date(subject):
    chart = by_key([subject])["training-loss"]
    assert svg(chart) == svg(chart)
    first = png(chart)
    assert first == png(chart)
    assert PNG_MARK.encode() in first[:4096]
    assert b"Date" not in first
    assert b"tIME" not in first


def test_any_name_can_be_rendered():
    subjects = [
        dataclasses.replace(hostile_subject(), name=text, log=[{"step": 1, "loss": float(place)}], spreads={})
        for place, text in enumerate(HOSTILE[:6])
    ]
    (chart,) = charts(subjects)
    assert png(chart)
    texts = "".join(ET.fromstring(svg(chart)).itertext())
    assert "</script>" in texts
    assert "nul␀ bell␇" in texts


def test_matplotlib_is_unchanged_and_pyplot_is_not_loaded(monkeypatch):
    line = Line("a", np.arange(3.0), np.arange(3.0), "0")
    chart = Chart("key", "Title", "Text.", "x", "y", [line])
    plain = svg(chart)
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 40)
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    before = dict(matplotlib.rcParams)
    assert svg(chart) == plain
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, numpy as np\nfrom sepo.report.charts import Chart, Line\n"
        "from sepo.report.drawing import png, svg\n"
        "c = Chart('k', 't', 'd', 'x', 'y', [Line('a', np.arange(3.0), np.arange(3.0), '0')])\npng(c), svg(c)\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
