"""A run with the template of a reasoning model: what is trained, selected and shown, and the table of rows."""

import json
import re

import pytest

from sepo.cli import main
from sepo.report.reading import read_subject
from sepo.runs.log_reader import read_log
from sepo.runs.token_samples_reader import read_record
from tests.support.recipes import logged, sepo_recipe, sepo_train

THOUGHT = "<think>\nIt has to be counted.\n</think>\n\n"
EMPTY = "<think>\n\n</think>\n\n"
SIDES = ("chosen", "rejected")


def row(question, chosen, rejected):
    return {"instruction": question, "chosen": chosen, "rejected": rejected}


ROWS = [
    row("How many legs has a spider?", f"{THOUGHT}It has 8 legs.", "It has 6 legs."),
    row("What colour is the sky?", "The sky is blue.", f"{THOUGHT}The grass is green."),
    row("Name the capital of France.", "It is Paris.", "It is a helpful assistant."),
    row("How many legs has an insect?", f"{THOUGHT}6 of them.", f"{THOUGHT}8 of them."),
    row("Which day is clear?", "The same.", "The same."),
    row("What is long?", "A spider has 8 legs; " * 30, "Paris."),
]
RECIPE = {"template": "qwen3", "dataset": "thoughts", "max_steps": 2, "per_device_train_batch_size": 5}


def train(world, folder, *words, **overrides):
    data = folder / "data"
    data.mkdir()
    (data / "thoughts.json").write_text(json.dumps(ROWS))
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "thoughts.json", "ranking": True, "columns": columns}
    (data / "dataset_info.json").write_text(json.dumps({"thoughts": entry}))
    recipe = sepo_recipe(world, folder / "out", dataset_dir=str(data), **RECIPE, **overrides)
    return sepo_train(recipe, folder, *words)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thoughts")
    return folder, train(world, folder, chosen_select_ratio=1.0, rejected_select_ratio=0.5)


@pytest.mark.host
def test_no_token_of_the_template_is_selected_or_counted(run):
    folder, _ = run
    pairs, unread = read_record(folder / "out")
    assert unread == 0
    assert len(pairs) == 10
    thoughts = {pair.row: THOUGHT in "".join(pair.chosen.tokens) for pair in pairs}
    assert sorted(thoughts.items()) == [(0, True), (1, False), (2, False), (3, True), (4, False)]
    counted = {"chosen": [0, 0], "rejected": [0, 0]}
    for pair in pairs[:5]:
        for side in SIDES:
            answer = getattr(pair, side)
            text = "".join(answer.tokens)
            excluded = "".join(token for token, may in zip(answer.tokens, answer.candidates, strict=True) if not may)
            cut = pair.row == 4 and side == "chosen"
            assert excluded == ("" if THOUGHT in text else EMPTY) + ("" if cut else "\n")
            assert not any(kept and not may for kept, may in zip(answer.selected, answer.candidates, strict=True))
            counted[side][0] += sum(answer.selected)
            counted[side][1] += sum(answer.candidates)
            if side == "chosen":  # of ratio 1: everything else, the end of turn included
                assert answer.selected == answer.candidates
                assert cut or answer.tokens[answer.selected.index(True) :][-2:] == ("<|im_end|>", "\n")
    first = logged(folder / "out")[0]
    for side, (kept, among) in counted.items():
        assert first[f"select/{side}_ratio"] == pytest.approx(kept / among)
    assert first["select/chosen_ratio"] == 1.0
    assert 0.4 < first["select/rejected_ratio"] <= 0.5


@pytest.mark.host
def test_what_is_shown_is_what_was_trained(run, capsys):
    """The selection that is recomputed from the store, with the tokens of the template by their texts."""
    folder, _ = run
    recorded = {pair.row: pair for pair in read_record(folder / "out")[0]}
    subject = read_subject(folder / "out")
    assert subject.missing == []
    assert [pair.row for pair in subject.pairs] == [0, 1, 2, 3, 4]
    for pair in subject.pairs:
        for side in SIDES:
            shown, trained = getattr(pair, side), getattr(recorded[pair.row], side)
            assert shown.tokens == trained.tokens
            assert shown.selected.tolist() == list(trained.selected)
            assert shown.candidates.tolist() == list(trained.candidates)
    assert main(["show", str(folder / "out"), "--row", "2"]) == 0
    printed = capsys.readouterr().out
    chosen = re.search(r"chosen: (\d+) tokens, (\d+) selected \(100%\) of (\d+) without the chat template's", printed)
    total, kept, among = map(int, chosen.groups())
    assert kept == among < total
    assert "⟦It is Paris.<|im_end|>⟧" in printed
    assert "⟦<think>" not in printed
    (store,) = json.loads((folder / "out" / "sepo_settings.json").read_text())["token_scores"].values()
    assert main(["show", store, "--row", "2"]) == 0
    assert "without the chat template's" in capsys.readouterr().out
    assert main(["scores", "show", store]) == 0
    assert "template_tokens" not in capsys.readouterr().out


@pytest.mark.host
def test_the_table_of_rows_is_logged_once_and_kept(run):
    folder, done = run
    output = done.stdout + done.stderr
    assert output.count("rows that are not used as given:") == 1
    lines = output.split("rows that are not used as given:\n")[1].splitlines()[:5]
    table = [re.sub(r" +", " ", line).strip() for line in lines]
    assert table[:2] == ["data set rows reason example", "train 6 given"]
    assert table[2].startswith("1 skipped both responses have the same tokens '... Which day is clear?")
    assert table[3].startswith("1 cut a response is cut at cutoff_len 128 '...")
    assert table[4] == "5 used"
    rows = read_log(folder / "out").rows["train"]
    assert (rows["given"], rows["used"]) == (6, 5)
    assert [(loss["what"], loss["rows"]) for loss in rows["losses"]] == [("skipped", 1), ("cut", 1)]


@pytest.mark.host
def test_thoughts_that_the_template_removes_are_counted(world, tmp_path):
    done = train(world, tmp_path, "enable_thinking=false")
    rows = read_log(tmp_path / "out").rows["train"]
    changed = [loss for loss in rows["losses"] if loss["what"] == "changed"]
    assert [(loss["reason"], loss["rows"], loss["example"]) for loss in changed] == [
        ("enable_thinking: false removes the thought of a response", 3, "How many legs has a spider?")
    ]
    assert "3 changed  enable_thinking: false removes" in done.stdout + done.stderr
    for pair in read_record(tmp_path / "out")[0]:
        assert not any("think" in "".join(getattr(pair, side).tokens) for side in SIDES)


@pytest.mark.host
@pytest.mark.parametrize("keys", [
    {"token_scorer": "random", "select_scope": "dataset", "select_unit": "span"},
    {"token_scorer": "confidence", "select_unit": "step"},
    {"token_scorer": "none", "objective": "simpo"},
], ids=lambda keys: keys["token_scorer"])  # fmt: skip
@pytest.mark.parametrize("thinking", ["true", "null"])
def test_other_scorers(world, tmp_path, keys, thinking):
    sources = {"oracle_model": None, "oracle_base_model": None}
    train(world, tmp_path, f"enable_thinking={thinking}", **sources, **keys)
    pairs, _ = read_record(tmp_path / "out")
    assert pairs
    for pair in pairs:
        for side in SIDES:
            answer = getattr(pair, side)
            text = "".join(answer.tokens)
            written = thinking == "true" and THOUGHT not in text
            assert text.startswith(EMPTY) is written  # with null it is in the prompt of this side
            if keys["token_scorer"] == "none":  # trained on every token, as by the host's DPO
                assert answer.candidates is None
                assert all(answer.selected)
                continue
            flags = answer.candidates or [True] * len(answer.tokens)
            assert any(answer.selected)
            assert not any(kept and not may for kept, may in zip(answer.selected, flags, strict=True))
            excluded = "".join(token for token, may in zip(answer.tokens, flags, strict=True) if not may)
            assert excluded == (EMPTY if written else "") + ("\n" if text.endswith("\n") else "")
