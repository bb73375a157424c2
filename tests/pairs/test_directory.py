"""The directory of pairs: settings, rows, summary, and what it refuses."""

import json

import pytest

from sepo.errors import SepoError
from sepo.pairs.directory import INFO, PAIRS, SAMPLES, SETTINGS, SUMMARY, PairsDirectory
from sepo.pairs.summary import PairsSummary, PromptCounts, pairs_summary, print_pairs
from tests.support.judged import judged, prompt

SETTINGS_ = {"model": {"model": "m"}, "pairs_samples": 3, "pairs_temperature": 0.8}


PROMPTS = [
    judged(prompt(0), ("right", True, 1.0, 4), ("wrong", True, 0.0, 2), ("", True, 0.5, 0)),
    judged(prompt(2), ("a", True, 0.0, 1), ("b", True, 0.0, 1), ("a", True, 0.0, 1)),
    judged(
        prompt(3, ("user", "q"), ("function", "[]"), ("observation", "8"), system="s", tools="[1]", expected="8"),
        ("long", False, 3.0, 6), ("best", True, 2.0, 3), ("cut", False, -1.0, 6),
    ),
    judged(prompt(4), ("x", False, 1.0, 6), ("y", False, 0.0, 6), ("x", False, 1.0, 6)),
    judged(prompt(5), ("z", True, 1.0, 1), ("z", True, 1.0, 1), ("z", True, 1.0, 1)),
]  # fmt: skip
COUNTS = PromptCounts(rows=7, duplicates=1, too_long=1)


def opened(folder, **changed):
    return PairsDirectory(folder, settings={**SETTINGS_, **changed}, notes={"sepo": "0"})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_of_finished_pairs(tmp_path):
    directory = opened(tmp_path / "a" / "pairs")
    directory.parts.mkdir()
    (directory.parts / "samples-00000.json").write_text("{}")
    assert not directory.finished
    summary = directory.finish(PROMPTS, counts=COUNTS, seed=7)
    assert directory.finished
    assert not directory.parts.exists()
    assert lines(directory.folder / PAIRS) == [
        {
            "messages": [{"role": "user", "content": "q0"}],
            "chosen": {"role": "assistant", "content": "right"},
            "rejected": {"role": "assistant", "content": "wrong"},
            "tools": "",
            "chosen_reward": 1.0,
            "rejected_reward": 0.0,
        },
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "function_call", "content": "[]"},
                {"role": "tool", "content": "8"},
            ],
            "chosen": {"role": "assistant", "content": "best"},
            "rejected": {"role": "assistant", "content": "cut"},
            "tools": "[1]",
            "chosen_reward": 2.0,
            "rejected_reward": -1.0,
        },
    ]
    entry = json.loads((directory.folder / INFO).read_text())["pairs"]
    assert (entry["file_name"], entry["ranking"], entry["columns"]["tools"]) == (PAIRS, True, "tools")
    samples = lines(directory.folder / SAMPLES)
    assert [(line["id"], line["chosen"], line["rejected"], line["no_pair"]) for line in samples] == [
        (0, 0, 1, None), (2, None, None, "tie"), (3, 1, 2, None), (4, None, None, "unfinished"),
        (5, None, None, "identical"),
    ]  # fmt: skip
    assert samples[2]["expected"] == "8"
    assert "expected" not in samples[0]
    assert samples[0]["responses"][1] == {"sample": 1, "text": "wrong", "tokens": 2, "finished": True, "reward": 0.0}
    assert samples[0]["seed"] == 7
    # Another process, and a later call, read what is there.
    assert opened(directory.folder).finish(None, counts=COUNTS, seed=7) == summary
    assert opened(directory.folder).summary() == summary


def test_the_numbers_of_the_summary(capsys):
    found = pairs_summary(PROMPTS, COUNTS)
    assert found == PairsSummary(
        rows=7, duplicate_prompts=1, without_expected=0, too_long=1, prompts=5, responses=15, truncated=5, repeated=4,
        empty=1, pairs=2, ties=1, identical=1, unfinished=1, best_truncated=1, rejected_truncated=1,
        tokens=pytest.approx(45 / 15), chosen_tokens=3.5, rejected_tokens=4.0, reward=pytest.approx(10.5 / 15),
        chosen_reward=1.5, rejected_reward=-0.5, margin=2.0, smallest_margin=1.0, largest_margin=3.0,
    )  # fmt: skip
    assert PairsSummary.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    print_pairs(found, source="tiny", judge="judge exact")
    printed = capsys.readouterr().out
    for piece in ("15 responses to 5 prompts of tiny, by judge exact", "2 of 5 (40.0%)", "1 of 7 rows",
                  "too long for the model", "empty responses", "3.5 and 4.0", "2 (1 to 3)"):  # fmt: skip
        assert piece in printed, piece
    assert "without expected answer" not in printed


def test_pairs_without_tools_have_no_such_column(tmp_path):
    opened(tmp_path).finish(PROMPTS[:1], counts=COUNTS, seed=0)
    assert "tools" not in lines(tmp_path / PAIRS)[0]
    assert "tools" not in json.loads((tmp_path / INFO).read_text())["pairs"]["columns"]


def test_no_pair_is_an_error_and_the_samples_are_kept(tmp_path):
    directory = opened(tmp_path)
    message = (
        r"no ties broken: none of 3 prompts has a pair \(1 with equal rewards, 1 with fewer than two distinct responses"
        r", 1 with truncated responses alone\); raise pairs_samples, .* in another pairs_dir"
    )
    for _ in range(2):
        with pytest.raises(SepoError, match=message):
            directory.finish([PROMPTS[1], *PROMPTS[3:]], counts=COUNTS, seed=0)
        assert len(lines(tmp_path / SAMPLES)) == 3
        assert not directory.finished
        assert not (tmp_path / PAIRS).exists()


def test_other_settings_are_refused_once_there_are_samples(tmp_path):
    opened(tmp_path)
    directory = opened(tmp_path, pairs_samples=4)  # nothing was sampled yet
    assert json.loads((tmp_path / SETTINGS).read_text())["settings"]["pairs_samples"] == 4
    directory.parts.mkdir()
    (directory.parts / "samples-00000.json").write_text("{}")
    before = (tmp_path / SETTINGS).read_bytes()
    with pytest.raises(
        SepoError,
        match=rf"pairs_dir {tmp_path} has samples with pairs_samples 4, and this run has 3; repeat",
    ):
        opened(tmp_path)
    with pytest.raises(SepoError, match=r"has samples with pairs_top_p null, and this run has 0.5"):
        opened(tmp_path, pairs_samples=4, pairs_top_p=0.5)
    assert (tmp_path / SETTINGS).read_bytes() == before
    assert opened(tmp_path, pairs_samples=4).digest == directory.digest


def test_files_of_another_origin_are_not_overwritten(tmp_path):
    (tmp_path / INFO).write_text("{}")
    with pytest.raises(SepoError, match=r"has dataset_info.json and no pairs_settings.json, so its settings"):
        opened(tmp_path)
    assert (tmp_path / INFO).read_text() == "{}"


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    directory = opened(tmp_path)
    directory.finish(PROMPTS, counts=COUNTS, seed=0)
    (tmp_path / PAIRS).rename(tmp_path / "moved")
    with pytest.raises(SepoError, match=r"has summary.json and no pairs.jsonl; restore it, or remove the directory"):
        directory.summary()
    (tmp_path / "moved").rename(tmp_path / PAIRS)
    (tmp_path / SUMMARY).write_text("{}")
    with pytest.raises(SepoError, match=r"summary.json cannot be read .* remove it, and the pairs are made again"):
        directory.summary()


def test_a_file_in_the_place_of_the_directory_is_kept(tmp_path):
    file = tmp_path / "pairs"
    file.write_text("notes")
    with pytest.raises(SepoError, match="is a file, expected a directory; set another pairs_dir, or move the file"):
        opened(file)
    assert file.read_text() == "notes"
