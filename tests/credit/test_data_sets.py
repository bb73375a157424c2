"""Adapters of public data sets on hand-made files in the published formats: pairs, marks, and errors of one line."""

import json
from pathlib import Path

import pytest

from sepo.cli import main
from sepo.credit.data import ErrorSpan
from sepo.credit.sets.registry import SETS, read_set
from sepo.credit.sets.report import read_as_dict
from sepo.credit.sets.wmt_mqm import _is_quoted, _languages
from sepo.errors import SepoError
from tests.support.credit_files import FILES, SOURCES


def read(name, path=None, **options):
    return read_set(f"{name}={path or FILES / SOURCES[name]}", **options)


def wrong(pair):
    return [pair.rejected[span.start : span.end] for span in pair.spans]


def test_every_data_set_has_a_hand_made_file():
    assert set(SOURCES) == set(SETS)


@pytest.mark.parametrize("name", SOURCES)
def test_pairs_are_well_formed_and_every_row_is_accounted_for(name):
    found = read(name)
    assert [pair.row for pair in found.pairs] == list(range(len(found.pairs)))
    for pair in found.pairs:
        assert pair.spans
        assert pair.chosen != pair.rejected
        assert pair.language in ("en", "de")
        for start, end in [*((span.start, span.end) for span in pair.spans), *pair.steps, *pair.unlabelled]:
            assert 0 <= start < end <= len(pair.rejected)
    assert found.rows == 20
    if name != "wmt_mqm":  # there, several rows are one translation
        assert len(found.pairs) + sum(of.count for of in found.left_out.values()) == found.rows
    plain = json.loads(json.dumps(read_as_dict(found)))
    assert plain["pairs"] == len(found.pairs)
    assert plain["url"].startswith("https://")


def test_qa_feedback():
    found = read("qa_feedback")
    first, painter = found.pairs[:2]
    assert first.messages == ({"role": "user", "content": "What do bees make?"},)
    assert first.chosen == "Bees make honey."
    assert wrong(first) == ["They are also known for dancing.", "blue"]
    assert [span.type for span in first.spans] == ["Irrelevant", "Wrong-Grounding"]
    assert wrong(painter)[1] == "It shows a river."  # after an emoji: characters, not bytes or UTF-16 units
    assert {name: (of.count, of.first.partition(" of ")[0]) for name, of in found.left_out.items()} == {
        "no error is marked": (1, "row 6")
    }
    (same,) = (pair for pair in found.pairs if "pool" in pair.rejected)
    assert same.chosen == ""  # the correction changed nothing


def test_qa_feedback_that_was_converted_to_pairs(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c d", "rejected_error_spans": [{"start": 2, "end": 3}]}
    (tmp_path / "pairs.json").write_text(json.dumps([row]))
    (pair,) = read("qa_feedback", tmp_path / "pairs.json").pairs
    assert (pair.language, wrong(pair)) == ("en", ["d"])


def test_prmbench():
    found = read("prmbench")
    first = found.pairs[0]
    assert wrong(first) == [first.rejected.split("\n")[1], first.rejected[first.steps[3][0] :]]
    assert first.rejected.split("\n")[1].endswith("📦.")
    assert {span.type for span in first.spans} == {"circular"}
    assert "3 × 1 = 3 pens" in first.chosen
    assert found.pairs[6].messages[0]["content"] == "Mia has 9 boxes with 13 pens each. How many pens are left?"
    assert [of.count for of in found.left_out.values()] == [1, 1]
    assert found.left_out["error_steps names a step that modified_process does not have"].first.startswith("line 19 ")


def test_only_a_line_feed_ends_a_line(tmp_path):
    """U+2028 and U+0085 are characters of texts, which JSON may hold as they are."""
    row = {"input": "a\u2028b", "steps": ["c\u0085d", "e"], "mistake_index": 0}
    (tmp_path / "task.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n")
    (pair,) = read("big_bench_mistake", tmp_path / "task.jsonl").pairs
    assert wrong(pair) == ["c\u0085d"]


def test_big_bench_mistake():
    found = read("big_bench_mistake")
    first, second, third = found.pairs[:3]
    assert wrong(first) == ["We now have: lime < fig < pear."]
    assert (
        first.rejected[slice(*first.unlabelled[0])]
        == "\nNow, the order is lime fig pear. So the answer is lime fig pear"
    )
    assert wrong(third)[0].startswith("I should start")  # mistake_index 0
    assert len(third.steps) == 3
    assert {span.type for pair in found.pairs for span in pair.spans} == {"word_sorting"}
    right = [pair for pair in found.pairs if pair.chosen]
    assert right
    for pair in right:
        assert pair.messages[0]["content"].split() == sorted(
            pair.chosen.rpartition("is ")[2].split(), key=pair.messages[0]["content"].split().index
        )
    assert not second.chosen or second.chosen != second.rejected


def test_wmt_mqm():
    found = read("wmt_mqm")
    by = {pair.rejected: pair for pair in found.pairs}
    first = by['Der Bäcker kauft "frische" Brötchen.']
    assert first.spans == (ErrorSpan(11, 16, "Fluency/Grammar"), ErrorSpan(27, 35, "Accuracy/Mistranslation"))
    assert first.chosen == 'Der Bäcker kaufte "frische" Brötchen.'
    assert first.messages[0]["content"] == 'Translate from English to German:\nThe baker bought "fresh" bread rolls.'
    four = by["Es regnete vier Tage lang."]
    assert wrong(four) == ["vier", "."]
    assert wrong(by["Sie liest ein Buch über Bienen 🐝 jeder Woche."]) == ["jeder"]  # a source error is no error
    assert wrong(by["Sie schreibt jede Woche ein Buch über Wespen."]) == ["schreibt", "Wespen"]
    assert wrong(by["Sie liest jede Woche ein Buch."]) == ["ein"]  # the omission is marked in the source
    assert "Es regnete drei lange Tage." not in by  # neutral
    assert found.left_out["a <v> has no </v>"].count == 1


def test_chosen_is_the_translation_with_the_lowest_score(tmp_path):
    """Major 5, minor 1, minor punctuation 0.1, non-translation 25; means over raters, of which this one has two."""
    rows = [
        ("1", "A", "r1", "<v>ein</v> a", "Style/Awkward", "Minor"),
        ("1", "A", "r2", "ein a", "No-error", "No-error"),
        ("1", "B", "r1", "ein b<v>.</v>", "Fluency/Punctuation", "Minor"),
        ("1", "C", "r1", "<v>ein</v> c", "Accuracy/Addition", "Major"),
        ("1", "D", "r1", "<v>x</v>", "Non-translation!", "Major"),
        ("2", "A", "r1", "<v>zwei</v> a", "Style/Awkward", "Minor"),
        ("2", "A", "r2", "zwei <v>a</v>", "Style/Awkward", "Minor"),
        ("2", "B", "r1", "<v>zwei</v> b.", "Style/Awkward", "Minor"),
        ("2", "B", "r1", "zwei b<v>.</v>", "Fluency/Punctuation", "Minor"),
    ]
    head = "system\tdoc\tdocSegId\tglobalSegId\trater\tsource\ttarget\tcategory\tseverity\tmetadata\t# Documentation"
    lines = [
        "\t".join([system, "d:zh-en", segment, segment, rater, "s", *of, "{}"]) for segment, system, rater, *of in rows
    ]
    (tmp_path / "mqm.tsv").write_text("\ufeff" + "\r\n".join([head, *lines]))
    chosen = {pair.rejected: pair.chosen for pair in read("wmt_mqm", tmp_path / "mqm.tsv").pairs}
    first = {"ein a": "ein b.", "ein b.": "", "ein c": "ein b.", "x": "ein b."}
    assert chosen == {**first, "zwei a": "", "zwei b.": "zwei a"}  # 1 and 1.1
    assert read("wmt_mqm", tmp_path / "mqm.tsv").languages == {"en": 6}


def test_quotes_of_spreadsheets_are_removed_and_others_kept(tmp_path):
    assert _is_quoted(['"He said ""no""."', "plain"])
    assert not _is_quoted(['"No"', "plain"])
    assert not _is_quoted(['He said "no".', '"a ""b"""'])
    head = "system\tdoc\tseg_id\trater\tsource\ttarget\tcategory\tseverity"
    line = 'A\td\t1\tr1\t"a ""b"""\t"c ""<v>d</v>"""\tOther\tMajor'
    (tmp_path / "mqm.tsv").write_text(f"{head}\n{line}\n")
    (pair,) = read("wmt_mqm", tmp_path / "mqm.tsv").pairs
    assert (pair.rejected, wrong(pair), pair.language) == ('c "d"', ["d"], "")
    assert _languages("x:English-German", Path("a.tsv")) == ("en", "de")
    assert _languages("x", Path("mqm_generalMT2022_enru.3ratingsPerSegment.tsv")) == ("en", "ru")


def test_ragtruth():
    found = read("ragtruth")
    first, second = found.pairs[:2]
    assert wrong(first) == ["06:00", "Dogs are welcome."]
    assert [span.type for span in first.spans] == ["Evident Conflict", "Evident Baseless Info"]
    assert first.chosen == "Café Åse opens at 08:00 and serves fish soup."
    assert "'Café Åse'" in first.messages[0]["content"]
    assert wrong(second) == ["It has a garden."]
    assert [pair.chosen for pair in found.pairs if "Mirabel" in pair.rejected] == [""] * 4  # no response without labels
    assert not any("Grün" in pair.rejected and "garden" in pair.rejected for pair in found.pairs)  # implicit_true
    assert read("ragtruth", FILES / "ragtruth" / "response.jsonl").pairs == found.pairs


def test_prm800k():
    found = read("prm800k")
    first, human, alone, later = found.pairs[:4]
    assert wrong(first) == ["$2^2 = 4$."]
    assert first.rejected[slice(*first.unlabelled[0])].startswith("\nSo the sum is 9.")
    assert first.chosen == "I want to compute $2^2 + 5$.\n$2^2 = 4$." or first.chosen.endswith("$2^2 = 4$.")
    assert human.chosen.endswith("\n$3^2 = 9$.")
    assert (alone.chosen, alone.unlabelled) == ("", ())
    assert wrong(later) == ["$6^2 = 12$."]
    assert later.rejected.startswith("I want to compute $6^2 + 9$.\nSquares are products: $6 \\cdot 6$.\n")
    assert later.unlabelled == ()  # not of the pre-generated solution
    assert {reason: of.count for reason, of in found.left_out.items()} == {
        "no step is rated -1": 4,
        "repeats a response": 1,
    }


def changed(name, tmp_path, change):
    """A copy of a hand-made file whose fourth row is changed; for text, the whole text."""
    source = FILES / SOURCES[name]
    if source.is_dir():
        for file in source.iterdir():
            (tmp_path / file.name).write_text(file.read_text())
        source = source / "response.jsonl"
    text = source.read_text()
    if source.suffix == ".tsv":
        lines = text.split("\n")
        lines[4] = change(lines[4])
        text = "\n".join(lines)
    elif source.suffix == ".json":
        rows = json.loads(text)
        rows[3] = change(rows[3])
        text = json.dumps(rows)
    else:
        lines = text.rstrip("\n").split("\n")
        lines[3] = json.dumps(change(json.loads(lines[3])))
        text = "\n".join(lines)
    target = tmp_path / source.name
    target.write_text(text)
    return target


def without(key):
    return lambda row: {name: value for name, value in row.items() if name != key}


def with_(**values):
    return lambda row: {**row, **values}


def feedback(**values):
    return lambda row: {**row, "feedback": {**row["feedback"], **values}}


def label(*steps):
    return lambda row: {**row, "label": {"steps": list(steps)}}


ERROR = {"error type": "Irrelevant", "start": 3, "end": 999}
LABEL = {"start": 0, "end": 4, "text": "Café", "label_type": "Evident Conflict"}


def labels(**values):
    return with_(labels=[{**LABEL, **values}], quality="good")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qa_feedback", without("question"), "row 3 of .* expected question, a string"),
        ("qa_feedback", with_(question=4), "row 3 of .*: question is 4, expected a string"),
        ("qa_feedback", feedback(errors=[ERROR]), r"errors\[0\] has start 3 and end 999, expected .* <= 76"),
        ("qa_feedback", feedback(errors={}), r"row 3 of .*errors is \{\}, expected a list of objects"),
        ("qa_feedback", lambda row: 7, "row 3 of .* is 7, expected an object"),
        ("prmbench", with_(question="\ud83d"), r"line 4 of .* has '\\ud83d', half of a surrogate pair"),
        ("prmbench", without("error_steps"), "line 4 of .* expected error_steps, a list of step numbers, from 1"),
        ("prmbench", with_(error_steps="3"), "line 4 of .*: error_steps is '3', expected a list of step numbers"),
        ("prmbench", with_(modified_process=[]), r"line 4 of .*: modified_process is \[\], expected a list of strings"),
        ("big_bench_mistake", with_(mistake_index=3), "line 4 of .*: mistake_index is 3, expected null or .* 3 steps"),
        ("big_bench_mistake", without("steps"), "line 4 of .* expected steps, a list of strings"),
        ("big_bench_mistake", with_(mistake_index=True), "mistake_index is True"),
        ("wmt_mqm", lambda line: line.rpartition("\t")[0], "line 5 of .* has 8 values; expected one for each of"),
        ("wmt_mqm", lambda line: line.replace("Major", "Huge"), "line 5 of .*: severity is 'Huge', expected one of"),
        ("ragtruth", labels(text="Cafe"), r"line 4 of .*labels\[0\] has text 'Cafe'"),
        ("ragtruth", labels(end=400), r"line 4 of .*labels\[0\] has start 0 and end 400"),
        ("ragtruth", with_(source_id="7"), "line 4 of .*: source_id is 7, which source_info.jsonl does not have"),
        ("prm800k", without("label"), "line 4 of .* expected label, an object with steps"),
        ("prm800k", label({"completions": [{"text": "a", "rating": 5}]}), r"steps\[0\].completions\[0\]: rating is 5"),
        ("prm800k", label({"completions": [], "chosen_completion": 2}), r"chosen_completion is 2, expected null or"),
    ],
)  # fmt: skip
def test_a_damaged_row_is_named_with_what_was_expected(name, change, message, tmp_path, capsys):
    path = changed(name, tmp_path, change)
    with pytest.raises(SepoError, match=message):
        read(name, path)
    assert main(["credit", f"{name}={path}", "--check"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    skipped = read(name, path, skip_damaged=True)
    assert skipped.left_out["damaged"].count == 1
    assert read(name).pairs[0].rejected == skipped.pairs[0].rejected


@pytest.mark.parametrize("name", SOURCES)
def test_a_truncated_file_and_a_foreign_one_are_one_line(name, tmp_path, capsys):
    source = FILES / SOURCES[name]
    source = source / "response.jsonl" if source.is_dir() else source
    for file in (FILES / "ragtruth").iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    whole = source.read_bytes()
    inside = whole.index(b"\n", len(whole) // 2) + 25
    for content in (
        whole[:inside],
        b"PAR1\x00\xff\xfe",
        b"",
        b"<html>not found</html>",
        b'{"a": 1}\n',
        b"[1]",
    ):
        path = tmp_path / source.name
        path.write_bytes(content)
        assert main(["credit", f"{name}={path}", "--check"]) == 2, content[:20]
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert "expected" in printed
        assert str(path) in printed


def test_directories_and_names(tmp_path):
    with pytest.raises(SepoError, match=r"prmbench needs its file: prmbench=PATH. Download prmtest_classified.jsonl"):
        read_set("prmbench")
    with pytest.raises(SepoError, match=r"'prmbnch' is not a data set.*Did you mean 'prmbench'"):
        read_set("prmbnch=x")
    with pytest.raises(SepoError, match=r"is a directory without mqm\*.tsv; expected newstest2021"):
        read("wmt_mqm", tmp_path)
    with pytest.raises(SepoError, match="is not a file; expected"):
        read("wmt_mqm", tmp_path / "x.tsv")
    (tmp_path / "response.jsonl").write_text("{}")
    with pytest.raises(SepoError, match=r"source_info\.jsonl does not exist"):
        read("ragtruth", tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"mqm_{name}.tsv").write_text((FILES / "mqm_hand_ende.tsv").read_text())
    assert len(read("wmt_mqm", tmp_path).pairs) == 2 * len(read("wmt_mqm").pairs)


def test_samples_of_public_sets_are_evenly_spaced():
    found = read("prmbench")
    assert [pair.row for pair in found.sample(3).pairs] == [0, 6, 12]
    assert found.sample(100) is found
    fluent = read_set("fluent")
    assert fluent.sample(2).pairs == fluent.pairs[:2]
    assert fluent.languages == {"en": len(fluent.pairs)}


def test_the_list_names_licence_source_and_file(capsys):
    assert main(["credit", "--list"]) == 0
    printed = capsys.readouterr().out
    for each in SETS.values():
        for piece in (each.name, each.licence, each.source, each.files):
            assert piece in printed
