"""`sepo status` and `sepo report` of a directory of pairs: begun, interrupted, finished, damaged."""

import itertools
import json
import os
import time

import pytest

from sepo.cli import main
from sepo.errors import SepoError
from sepo.pairs.directory import SAMPLES, SETTINGS, SUMMARY, PairsDirectory
from sepo.pairs.pairing import JudgedResponse, best_and_worst
from sepo.pairs.parts import Parts
from sepo.pairs.records import JudgedPrompt
from sepo.pairs.status import is_pairs, pairs_progress
from sepo.pairs.summary import PromptCounts
from sepo.pairs.units import WorkUnit
from tests.support.judged import judged, prompt

NOTES = {"policy": {"model": "m<b>", "adapters": ["a"]}, "judge": {"judge": "math"}, "prompts": "questions"}


def opened(folder, prompts=4):
    settings = {"prompts": {"number": prompts, "digest": "0"}, "pairs_samples": 3, "pairs_temperature": 0.8}
    return PairsDirectory(folder, settings=settings, notes=NOTES)


def filled(directory, *, samples, rewards):
    units = [WorkUnit(index, tuple((index, number) for number in range(3))) for index in range(4)]
    for step, count in (("samples", samples), ("rewards", rewards)):
        parts = Parts(directory.parts, step, units[:count], settings=directory.digest)
        parts.fill(lambda unit: [0.0] * len(unit.samples))
    return directory.folder


def finished(folder, *more):
    prompts = [
        judged(prompt(0), ("right", True, 1.0, 4), ("wrong", True, 0.0, 2), ("other", True, 0.5, 3)),
        judged(prompt(1), ("same", True, 0.0, 1), ("b", True, 0.0, 1), ("c", False, 0.0, 1)),
        *more,
    ]
    directory = opened(folder, len(prompts))
    directory.finish(prompts, counts=PromptCounts(rows=len(prompts)), seed=7)
    return directory.folder


def test_progress_counts_complete_batches(tmp_path):
    directory = opened(tmp_path / "pairs")
    assert is_pairs(directory.folder)
    assert not is_pairs(tmp_path)
    before = pairs_progress(directory.folder)
    assert (before["state"], before["responses"], before["sampled"], before["judged"]) == ("sampling", 12, 0, 0)
    assert before["seconds_left"] is None
    folder = filled(directory, samples=3, rewards=1)
    (directory.parts / "samples-00003.json").write_text('{"samples": [')  # damaged
    progress = pairs_progress(folder)
    assert (progress["state"], progress["sampled"], progress["judged"]) == ("sampling", 9, 3)
    filled(directory, samples=4, rewards=2)
    assert pairs_progress(folder)["state"] == "judging"


def test_the_time_left_follows_from_the_pace_of_the_batches(tmp_path):
    folder, now = filled(opened(tmp_path / "pairs"), samples=3, rewards=0), time.time()
    for index in range(3):
        os.utime(folder / ".parts" / f"samples-{index:05d}.json", (now, now - 20 + 10 * index))
    assert pairs_progress(folder)["seconds_left"] == pytest.approx(10.0, abs=0.1)  # the last of four batches
    for index in range(3):
        os.utime(folder / ".parts" / f"samples-{index:05d}.json", (now, now - 5000 + 10 * index))
    assert pairs_progress(folder)["seconds_left"] is None  # nothing has been written for long


def test_the_command_prints_progress_and_summary(tmp_path, capsys):
    folder = filled(opened(tmp_path / "begun"), samples=3, rewards=1)
    assert main(["status", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "sampled: 9 of 12 responses (75%)" in printed
    assert "judged: 3 of 12 responses (25%)" in printed
    done = finished(tmp_path / "done")
    assert main(["status", str(done)]) == 0
    printed = capsys.readouterr().out
    assert "sepo pairs, finished" in printed
    assert "pairs: 1 of 2 prompts (50%), 1 ties, 1 truncated responses" in printed
    assert main(["status", str(done), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["summary"]["pairs"]) == ("finished", 1)
    (done / SETTINGS).write_text("{}")
    with pytest.raises(SepoError, match="expected the settings of sepo pairs"):
        pairs_progress(done)


def report(folder, *words):
    status = main(["report", str(folder), *words])
    page = folder / "report.html"
    return status, page.read_text() if page.is_file() else ""


def test_a_report_has_numbers_examples_and_no_markup_of_texts(tmp_path, capsys):
    made = [JudgedResponse("<script>alert(1)</script>\u202e", True, 2.0, 5), JudgedResponse("<i>", True, -1.5, 4)]
    asked = prompt(7, ("user", "<img src=x onerror=alert(1)>"), expected="<8>")
    folder = finished(tmp_path / "pairs", JudgedPrompt(asked, made, best_and_worst(made)))
    status, text = report(folder, "--figures", str(tmp_path / "figures"))
    assert status == 0
    assert f"written: {folder / 'report.html'}" in capsys.readouterr().out
    for part in ("2 of 3 (66.7%)", "m&lt;b&gt;, a", "judged by math", "expected: &lt;8&gt;", "no pair: tie",
                 "pairs_temperature", "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩", "1, truncated"):  # fmt: skip
        assert part in text
    for markup in ("<script>alert", "<img", "<i>"):
        assert markup not in text
    assert 'id="tokens"' not in text  # sections of runs
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        "pairs-reward.png", "pairs-tokens.png", "pairs-margin.png",
    }  # fmt: skip


def test_examples_are_spread_over_the_prompts(tmp_path):
    more = [judged(prompt(index), ("a", True, 1.0, 1), ("b", True, 0.0, 1)) for index in range(2, 90)]
    _, text = report(finished(tmp_path / "pairs", *more))
    shown = [index for index in range(90) if f"<bdi>q{index}</bdi>" in text]
    assert len(shown) == 30
    assert max(later - first for first, later in itertools.pairwise(shown)) <= 4


def test_an_example_has_its_pair_and_few_other_responses(tmp_path):
    many = [(f"text {number}", True, float(number == 40), 1) for number in range(50)]
    _, text = report(finished(tmp_path / "pairs", judged(prompt(9), *many)))
    assert "39 more responses are not shown" in text
    assert "<bdi>text 40</bdi>" in text  # the chosen one
    assert "<bdi>text 9</bdi>" in text
    assert "<bdi>text 10</bdi>" not in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / SUMMARY).unlink(), "are not finished (0 of 6 responses are judged)"),
        (lambda folder: (folder / SUMMARY).write_text("{"), "cannot be read"),
        (lambda folder: (folder / SUMMARY).write_text("{}"), "lacks 'rows'"),
        (lambda folder: (folder / SAMPLES).unlink(), "restore the file"),
        (lambda folder: (folder / SAMPLES).write_text("{}\n"), "line 1 is damaged"),
        (lambda folder: (folder / "report.html").write_text("mine"), "is not a sepo report"),
    ],
)
def test_what_cannot_be_reported_is_one_line(tmp_path, capsys, damage, message):
    folder = finished(tmp_path / "pairs")
    damage(folder)
    assert main(["report", str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert main(["report", str(folder), str(folder)]) == 2
    assert "shows the pairs of one directory alone" in capsys.readouterr().err
