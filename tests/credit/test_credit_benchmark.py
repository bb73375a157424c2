"""The recorded results of benchmarks/credit.py: complete, equal to the documentation, and as good as required."""

import json
from pathlib import Path

import pytest

from sepo.credit.run import SCHEMA

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "credit.md").read_text()


def recorded(name):
    (path,) = (ROOT / "benchmarks" / "results").glob(f"credit-{name}-smollm2-*.json")
    assert path.with_suffix(".png").is_file()
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["demo", "fluent", "qa"])
def test_documentation_has_the_recorded_results(name):
    result = recorded(name)
    assert result["schema"] == SCHEMA
    assert {"oracle", "surprisal", "random"} <= set(result["scorers"])
    for scorer, of in result["scorers"].items():
        found, recall = of["auroc"], of["recall"]
        assert found["low"] <= found["mean"] <= found["high"]
        figures = (f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})" for value in (found, recall))
        assert " | ".join(figures) in PAGE, (name, scorer)
    assert result["scorers"]["random"]["auroc"]["mean"] == pytest.approx(0.5, abs=0.02)
    assert result["data"]["responses"] >= 50


def test_contrastive_prompts_are_measured_on_human_marked_errors():
    assert "contrastive" in recorded("qa")["scorers"]


def test_the_oracle_finds_obvious_errors():
    oracle = recorded("demo")["scorers"]["oracle"]
    assert oracle["auroc"]["mean"] >= 0.85
    assert oracle["recall"]["mean"] >= 0.85


def test_the_oracle_finds_fluent_errors_that_surprisal_does_not():
    result = recorded("fluent")
    assert result["scorers"]["surprisal"]["auroc"]["mean"] < 0.7
    (difference,) = (d for d in result["differences"] if (d["first"], d["second"]) == ("oracle", "surprisal"))
    assert difference["auroc"]["low"] > 0
    oracle = result["scorers"]["oracle"]
    assert oracle["auroc"]["low"] > 0.755  # the upper end of the interval of an oracle without pref_ftx
    for kind in ("Wrong-Number", "Wrong-Polarity"):
        assert oracle["by_type"][kind]["auroc"]["low"] > 0.6
