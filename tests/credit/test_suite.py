"""Several data sets in one command: end to end with tiny models on hand-made files, results, page and leaderboard."""

import json
from pathlib import Path

import pytest

from sepo.cli import main
from sepo.cli.credit_page import credit_page, read_results
from sepo.credit import leaderboard
from sepo.credit.run import SUITE_SCHEMA
from sepo.errors import SepoError
from tests.support.credit_files import FILES, SOURCES

LEVEL_KEYS = {
    "responses", "left_out", "units", "marked_units", "preceded", "best_possible", "scorers", "differences",
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(world, tmp_path_factory):
    """All public data sets and a built-in one under a tiny model, with every file that the command writes."""
    out = tmp_path_factory.mktemp("suite")
    (out / "recipe.yaml").write_text("stage: sepo\nhub_token: hf_secretsecretsecretsecret\n")
    words = [
        "credit", *(f"{name}={FILES / path}" for name, path in SOURCES.items()), "fluent", "--model", world / "base",
        "--template", "chatml", "--scorers", "surprisal,position,random", "--bootstrap", 20, "--rows", 6,
        "-o", out / "credit.json", "--figure", out / "credit.png", "--page", out / "credit.html",
        "--leaderboard", out / "board", "--label", "tiny", "--recipe", out / "recipe.yaml",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    return out, [str(word) for word in words]


def test_every_set_has_results_at_every_level(measured, capsys):
    out, _ = measured
    suite = json.loads((out / "credit.json").read_text())
    assert suite["schema"] == SUITE_SCHEMA
    assert list(suite["sets"]) == [*SOURCES, "fluent"]
    for name, result in suite["sets"].items():
        data = result["data"]
        assert data["source"] == name
        assert 0 < data["responses"] <= 6
        assert ("read" in data) == (name in SOURCES)
        for level in ("span", "step"):
            found = result["levels"][level]
            if found is None:
                assert (name, level) in {("wmt_mqm", "step"), ("ragtruth", "step"), ("qa_feedback", "step")}
                continue
            assert set(found) == LEVEL_KEYS
            assert found["marked_units"] < found["units"] <= data["tokens"]
            assert {"auroc", "recall", "first_error", "by_type"} <= set(found["scorers"]["surprisal"])
        for of in result["scorers"].values():
            assert set(of["by_language"]) == {"de" if name == "wmt_mqm" else "en"}
            assert 0 <= of["first_error"]["low"] <= of["first_error"]["mean"] <= of["first_error"]["high"] <= 1
        assert [d["first"] for d in result["differences"]] == ["surprisal", "surprisal", "position"]


def test_steps_of_the_data_set_are_the_steps(measured):
    out, _ = measured
    sets = json.loads((out / "credit.json").read_text())["sets"]
    mistakes = sets["big_bench_mistake"]
    assert mistakes["levels"]["step"]["marked_units"] == mistakes["levels"]["step"]["responses"]  # one wrong step each
    # Without labels after the first mistake, later tokens are always the wrong ones; the first error is not the last.
    assert mistakes["levels"]["step"]["scorers"]["position"]["auroc"]["mean"] == 1.0
    assert mistakes["levels"]["step"]["scorers"]["position"]["first_error"]["mean"] == 0.0


def test_files_that_the_command_writes(measured, tmp_path, capsys):
    out, words = measured
    assert (out / "credit.png").read_bytes().startswith(b"\x89PNG")
    html = (out / "credit.html").read_text()
    assert main(["report", str(out / "credit.json"), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == html
    for piece in (*SOURCES, "surprisal", "AUROC by span", "first-error AUROC", "wmt_mqm: AUROC by type of error"):
        assert piece in html
    assert "<svg" in html
    assert 'href="#tokens"' not in html
    capsys.readouterr()
    assert main(words) == 2
    assert "already exists; name another file, or add --overwrite" in capsys.readouterr().err
    kept = words[: words.index("-o")] + words[words.index("--leaderboard") :]
    assert main(kept) == 2
    assert "already exists; choose another --label, or add --overwrite" in capsys.readouterr().err


def test_rows_of_the_leaderboard(measured):
    out, _ = measured
    rows = leaderboard.read(out / "board")
    assert len(rows) == 3 * (len(SOURCES) + 1)
    assert {row["label"] for row in rows} == {"tiny"}
    for row in rows:
        assert row["models"]["model"]["model"] == "base"  # no directories
        assert row["recipe"] == {"stage": "sepo", "hub_token": "(not recorded)"}
        assert {"sepo", "python", "torch", "transformers"} <= set(row["versions"])
        assert row["levels"]["token"]["auroc"]["low"] <= row["levels"]["token"]["auroc"]["high"]
    columns, cells = leaderboard.table(rows, ["prmbench", "absent"])
    assert [line[0] for line in cells[:3]] == ["prmbench"] * 3
    assert cells[3][:2] == ["absent", "not run"]
    assert all(len(line) == len(columns) for line in cells)
    aurocs = [float(line[4][:5]) for line in cells[:3]]
    assert aurocs == sorted(aurocs, reverse=True)


def test_a_damaged_leaderboard_or_result_is_one_line(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"schema": "other"}')
    with pytest.raises(SepoError, match=r"x\.json is not a row of a leaderboard .*; expected a file with schema"):
        leaderboard.read(tmp_path)
    with pytest.raises(SepoError, match=r"x\.json has no results of `sepo credit`"):
        read_results(tmp_path / "x.json")
    assert main(["report", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fluent", "fluent"], "a data set is given twice (fluent, fluent)"),
        (["fluent", "--model", "x", "--label", "y"], "--label is set without --leaderboard"),
        (["fluent", "--model", "x", "--recipe", "y"], "--recipe is set without --leaderboard"),
        (["fluent", "--leaderboard", "b", "--recipe", "nowhere.yaml"], "--recipe nowhere.yaml: "),
        ([], "no data is given; name a data set (NAME=PATH, see --list)"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["credit", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_the_page_of_a_single_set(measured):
    out, _ = measured
    suite = read_results(out / "credit.json")
    made = credit_page({"prm800k": suite["prm800k"]})
    assert "Token-level credit on prm800k" in made.text
    assert "wmt_mqm" not in made.text


def test_the_recorded_leaderboard_is_in_the_documentation():
    folder = Path(__file__).parents[2] / "benchmarks" / "credit"
    page = (folder.parents[1] / "docs" / "credit.md").read_text()
    for row in leaderboard.read(folder):
        mean = row["levels"]["token"]["auroc"]["mean"]
        assert f"| {row['data_set']} | {row['scorer']} | {row['label']} |" in page
        assert f"{mean:.3f} (" in page
