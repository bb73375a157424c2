"""`sepo show` in a terminal and in a file: marks of selected tokens, and texts cannot control the terminal."""

import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sepo.cli import main
from sepo.report.show import show
from sepo.report.subject import Pair, Side, Subject
from sepo.score_store import write_names
from tests.support.stored_runs import make_run, make_store, record_line, table

ROWS = table()
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07", "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "\x9b31m", "a\rb\x08c\x00\x7f",
    "\u202eevil\u2066", "\u2028x\ufeff", "[bold]no[/bold] :smile:", "⟦fake⟧", "\ud800", "\x1bP1$r\x1b\\",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("scores"), ROWS)


def side(tokens, scores=None, selected=()):
    scores = np.float32(scores if scores is not None else range(len(tokens)))
    return Side(tuple(tokens), scores, np.isin(np.arange(len(tokens)), selected))


def subject_of(*pairs, **more):
    return Subject("name", Path("there"), "run", pairs=pairs, **more)


class Terminal(io.StringIO):
    """Standard output with ``isatty``."""

    def isatty(self):
        return True


@pytest.fixture
def in_a_terminal(monkeypatch):
    """Return a function that returns the output of a command in a terminal."""
    # rich reads the environment that it saw when imported; `Dataset.map` in processes leaves a copy in its place.
    monkeypatch.setattr(Console, "_environ", os.environ)

    def run(*words, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", **environment}.items():
            monkeypatch.setenv(name, value)
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            assert main([str(word) for word in words]) == 0
        return terminal.getvalue()

    return run


def test_a_row_has_its_prompt_tokens_shares_and_sums(store, capsys):
    assert main(["show", str(store.path), "--row", "4"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "row 4" in printed
    assert ROWS[4]["prompt"] in printed
    for name in ("chosen", "rejected"):
        scores = ROWS[4][f"{name}_scores"]
        count = max(1, int(0.3 * len(scores) + 1e-9))
        assert f"{name}: {len(scores)} tokens, {count} selected ({count / len(scores):.0%})" in printed
        assert f"sum of scores {sum(scores):+.3f}" in printed
    assert printed.count("⟦") == printed.count("⟧") > 4


@pytest.mark.parametrize(("words", "shown"), [(["--rows", "2"], [0, 8]), ([], [0, 4, 8]), (["--row", "5"], [5])])
def test_rows_are_chosen(store, capsys, words, shown):
    assert main(["show", str(store.path), *words]) == 0
    assert [int(row) for row in re.findall(r"^row (\d+)$", capsys.readouterr().out, re.MULTILINE)] == shown


def test_one_side_with_every_score(store, capsys):
    assert main(["show", str(store.path), "--row", "1", "--side", "rejected", "--scores"]) == 0
    printed = capsys.readouterr().out
    assert "chosen:" not in printed
    numbers = re.findall(r"^ +'.*' +(?:selected)? +(\d+) +([+-][\d.]+) *$", printed, re.MULTILINE)
    assert [int(place) for place, _ in numbers] == list(range(len(ROWS[1]["rejected_scores"])))
    assert [float(score) for _, score in numbers] == pytest.approx(ROWS[1]["rejected_scores"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "9"], "--row is 9, expected a row from 0 to 8"),
        (["--row", "-1"], "--row is -1, expected a row from 0 to 8"),
        (["--rows", "0"], "--rows is 0, expected at least 1"),
    ],
)
def test_invalid_rows_are_errors(store, capsys, words, message):
    assert main(["show", str(store.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_selected_tokens_are_between_marks(capsys):
    pair = Pair(0, "q", side("abcd", selected=(0, 1, 3)), side(["x\n", "y\n"], selected=(1,)), step=7)
    show(subject_of(pair))
    printed = capsys.readouterr().out
    assert "row 0, at step 7" in printed
    assert "⟦ab⟧c⟦d⟧" in printed
    assert "  x↵\n  ⟦y↵⟧\n" in printed


def weighed(tokens, weights):
    return replace(side(tokens, selected=np.flatnonzero(weights)), weights=np.array(weights))


WEIGHED = Pair(0, "q", weighed(["a", " b", "c", "d"], [0.25, 0.25, 0.0, -1.5]), side("xy", selected=(1,)))


def test_weights_follow_their_tokens(capsys):
    show(subject_of(WEIGHED), scores=True)
    printed = capsys.readouterr().out
    assert "selected tokens are in ⟦⟧, with their weight after ×" in printed
    assert "4 tokens, 3 selected (75%), weights -1.5 to 0.25 (effective number 0.4), sum of scores" in printed
    assert "⟦a b×0.25⟧c⟦d×-1.5⟧" in printed
    assert "x⟦y⟧" in printed  # a response without weights
    rows = re.findall(r"^ +'.*' +(selected)? +(\d) +\S+(?: +([-.\d]+))? *$", printed, re.MULTILINE)
    assert [weight for _, _, weight in rows] == ["0.25", "0.25", "-", "-1.5", "", ""]


def test_weights_in_an_encoding_without_the_marks(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    show(subject_of(WEIGHED))
    sys.stdout.flush()
    assert b"[[a b*0.25]]c[[d*-1.5]]" in written.getvalue()


def test_a_terminal_shades_weights_and_strikes_out_negative_ones(tmp_path, in_a_terminal):
    answer = {"tokens": ["all", "half", "less", "neg", "none"], "scores": [0] * 5, "selected": [0, 1, 2, 3],
              "weights": [2.0, 1.0, 0.5, -2.0]}  # fmt: skip
    plain = {"tokens": ["plain", "none"], "scores": [0, 0], "selected": [0]}
    run = make_run(tmp_path / "run", None)
    (run / "_sepo_tokens.jsonl").write_text(record_line(0, 1, chosen=answer, rejected=plain) + "\n")
    printed = in_a_terminal("show", run, COLORTERM="truecolor")
    styles = {text: code for code, text in re.findall(r"\x1b\[([0-9;]*)m(\w+)(?=\x1b\[0m)", printed)}
    expected = {"all": "1;4", "half": "4", "less": "2;4", "neg": "1;4;9", "plain": "1;4"}
    assert {text: styles[text] for text in expected} == expected
    assert "none" not in styles
    assert {styles[text] for text in ("large", "medium", "small", "negative")} == {"1;4", "4", "2;4", "1;4;9"}


def test_a_terminal_has_colors_and_underlines_instead(store, in_a_terminal):
    printed = in_a_terminal("show", store.path, "--row", "2", COLORTERM="truecolor")
    assert "⟦" not in printed
    codes = COLOUR.findall(printed)
    assert any(";4" in code or "[4" in code for code in codes)  # underlined
    assert any("48;2;" in code for code in codes)
    assert "\x1b" not in COLOUR.sub("", printed)
    plain = in_a_terminal("show", store.path, "--row", "2", NO_COLOR="1")
    assert "⟦" in plain
    assert "48;" not in plain


def test_texts_cannot_control_the_terminal(tmp_path, in_a_terminal):
    answer = {"tokens": HOSTILE, "scores": [1.0] * len(HOSTILE), "selected": [0, 4]}
    line = record_line(0, 1, prompt="".join(HOSTILE), chosen=answer, rejected=answer)
    run = make_run(
        tmp_path / "run\x1b[31m", None, token_scorer="x\x1b[2J", registered_scores={"train": "\x1b]0;owned\x07"}
    )
    (run / "_sepo_tokens.jsonl").write_text(line + "\n")
    settings = json.loads((run / "sepo_settings.json").read_text())
    (run / "sepo_settings.json").write_text(json.dumps({**settings, "select": "\x1b[5m"}))
    for words in (["--scores"], ["--side", "chosen"]):
        for environment in ({"COLORTERM": "truecolor"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
            printed = COLOUR.sub("", in_a_terminal("show", run, *words, **environment))
            left = [character for character in printed if ord(character) < 32 and character != "\n"]
            assert left == []
            assert not re.search(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\ufeff]", printed)
            assert "␛[2J" in printed
            assert "[bold]no[/bold] :smile:" in printed


def test_marks_in_a_text_are_escaped(capsys):
    show(subject_of(Pair(0, "", side(["⟦fake⟧"]), side(["b"]))))
    printed = capsys.readouterr().out.split("selected tokens are in ⟦⟧")[1]
    assert "⟦" not in printed
    assert "\\u27e6fake\\u27e7" in printed


def test_an_encoding_without_the_marks_uses_others(store, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["show", str(store.path), "--row", "0"]) == 0
    sys.stdout.flush()
    assert b"[[" in written.getvalue()
    assert b"\\U0001f577" in written.getvalue()


def test_an_old_run_shows_what_is_available_and_what_to_do(tmp_path, capsys):
    store = make_store(tmp_path / "scores", ROWS, texts=False)
    run = make_run(tmp_path / "run", store.path, recorded=())
    assert main(["show", str(run), "--row", "3", "--side", "chosen"]) == 0
    printed = capsys.readouterr().out
    assert "▪" in printed
    assert "note: " in printed
    assert "`sepo score RECIPE.yaml`" in printed
    (run / "sepo_settings.json").unlink()
    assert main(["show", str(run)]) == 1
    assert "recorded no tokens" in capsys.readouterr().out


def test_a_run_on_sampled_responses_has_none_to_show(tmp_path, capsys):
    run = make_run(tmp_path / "run", None, recorded=(), stage="rto", objective="rto", token_scorer="none", select=None)
    (run / "_sepo_tokens.jsonl").unlink()
    assert main(["show", str(run)]) == 1
    assert "stage rto does not record the responses that it samples" in capsys.readouterr().out


def test_a_store_by_a_prefix_of_its_key(store, capsys, monkeypatch):
    monkeypatch.setenv("SEPO_TOKEN_SCORES_DIR", str(store.path.parent))
    write_names(store.path.parent, store.key, {"scorer": "oracle", "models": "a\x1b[2J over b"})
    assert main(["show", store.key[:8], "--row", "0"]) == 0
    assert "store, 9 rows, scored by oracle: a␛[2J over b" in capsys.readouterr().out


def test_no_scores_no_colors(capsys):
    show(
        subject_of(Pair(-1, "", side("ab", [np.nan, np.nan]), side("", []))), sides=("chosen", "rejected"), scores=True
    )
    printed = capsys.readouterr().out
    assert "row unknown" in printed
    assert "chosen: 2 tokens, 0 selected (0%), no scores" in printed
    assert "rejected: 0 tokens, 0 selected, no scores" in printed
