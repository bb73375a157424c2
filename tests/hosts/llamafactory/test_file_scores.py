"""`token_scorer: file`: the user's columns through the host's data pipeline to the tokens, and refused input."""

import json

import pytest
from transformers import AutoTokenizer

from sepo.errors import SepoError
from sepo.text.token_texts import TokenTexts
from tests.support import tiny
from tests.support.rows import prepared

IGNORE = -100
SIDES = ("chosen", "rejected")
RANKED = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}


@pytest.fixture(scope="module")
def words(world):
    return AutoTokenizer.from_pretrained(world / "policy")


def pairs(count=6):
    """Return tiny pairs, one of them with multi-byte characters."""
    rows = tiny.pairs(count)
    rows[1]["chosen"]["value"] = "Ça a 8 jambes 🕷️ – oui."
    return rows


def write(folder, rows, *, name="d", alpaca=False):
    folder.mkdir(exist_ok=True)
    columns = {"prompt": "q", "chosen": "chosen", "rejected": "rejected"} if alpaca else RANKED
    formatting = "alpaca" if alpaca else "sharegpt"
    (folder / f"{name}.json").write_text(json.dumps(rows))
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text()) if path.exists() else {}
    info[name] = {"file_name": f"{name}.json", "formatting": formatting, "ranking": True, "columns": columns}
    path.write_text(json.dumps(info))


def response(row, side):
    return [label for label in row[f"{side}_labels"] if label != IGNORE]


def with_scores(rows, plain):
    """Use the id of each token as its score, so that every score identifies its token."""
    return [
        {**row, **{f"{side}_scores": [float(token) for token in response(tokens, side)] for side in SIDES}}
        for row, tokens in zip(rows, plain, strict=True)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_round_trip_of_scores(words, tmp_path, workers):
    """Scores stay aligned through converter, merge, split, tokenization and a row that the host drops."""
    write(tmp_path, pairs())
    plain = prepared(tmp_path, words, carry=False)["train_dataset"]
    rows = with_scores(pairs(), plain)
    broken = {**rows[0], "conversations": []}
    write(tmp_path, [*rows[:2], broken, *rows[2:]])
    write(tmp_path, rows[:3], name="more")
    datasets = prepared(tmp_path, words, dataset="d,more", val_size=2, preprocessing_num_workers=workers)
    found = [*datasets["train_dataset"], *datasets["eval_dataset"]]
    assert len(found) == 9
    for row in found:
        for side in SIDES:
            assert row[f"{side}_scores"] == [float(token) for token in response(row, side)]
    assert not [name for name in datasets["train_dataset"].column_names if "sepo" in name]


def test_the_tokens_are_the_hosts_and_its_names_are_put_back(words, tmp_path):
    from llamafactory.data import loader

    before = loader.align_dataset, loader.PairwiseDatasetProcessor
    write(tmp_path, pairs())
    plain = prepared(tmp_path, words, carry=False)["train_dataset"]
    write(tmp_path, with_scores(pairs(), plain))
    carried = prepared(tmp_path, words)["train_dataset"].remove_columns([f"{side}_scores" for side in SIDES])
    assert carried.to_dict() == plain.to_dict()
    assert (loader.align_dataset, loader.PairwiseDatasetProcessor) == before


def test_scores_of_truncated_rows_are_cut_with_them(words, tmp_path):
    write(tmp_path, pairs())
    rows = with_scores(pairs(), prepared(tmp_path, words, carry=False)["train_dataset"])
    write(tmp_path, rows)
    cut = prepared(tmp_path, words, cutoff_len=24)["train_dataset"]
    lengths = set()
    for row, whole in zip(cut, rows, strict=True):
        for side in SIDES:
            assert row[f"{side}_scores"] == whole[f"{side}_scores"][: len(response(row, side))]
            lengths.add(len(row[f"{side}_scores"]) - len(whole[f"{side}_scores"]))
    assert min(lengths) < 0


def spans_of(text, *marked):
    return [{"start": text.index(part), "end": text.index(part) + len(part), "weight": w} for part, w in marked]


@pytest.mark.parametrize("alpaca", [False, True])
def test_spans_become_scores_of_their_tokens(words, tmp_path, alpaca):
    """Scores are the weights in chosen, negated in rejected, and zero elsewhere, for both data set formats."""
    rows = []
    for row in pairs():
        chosen, rejected = row["chosen"]["value"], row["rejected"]["value"]
        spans = {
            "chosen_spans": spans_of(chosen, (chosen.split()[2], 2.0)),
            "rejected_spans": spans_of(rejected, ("wings", 0.5), ("has", 3.0)),
        }
        if alpaca:
            rows.append({"q": row["conversations"][0]["value"], "chosen": chosen, "rejected": rejected, **spans})
        else:
            rows.append({**row, **spans})
    rows[2]["chosen_spans"] = []
    write(tmp_path, rows, alpaca=alpaca)
    data = prepared(tmp_path, words)["train_dataset"]
    for index, row in enumerate(data):
        for side, weights in (("chosen", {2.0}), ("rejected", {-0.5, -3.0})):
            scores = row[f"{side}_scores"]
            tokens = response(row, side)
            assert len(scores) == len(tokens)
            assert set(scores) - {0.0} == (set() if (index, side) == (2, "chosen") else weights)
            assert scores[-1] == 0.0  # end of turn
            for span in rows[index][f"{side}_spans"]:
                text = rows[index][side] if alpaca else rows[index][side]["value"]
                marked = [t for t, score in zip(tokens, scores, strict=True) if abs(score) == span["weight"]]
                assert text[span["start"] : span["end"]] in words.decode(marked)


def test_spans_of_truncated_rows_are_cut_with_them(words, tmp_path):
    rows = pairs()
    for row in rows:
        for side in SIDES:
            text = row[side]["value"]
            row[f"{side}_spans"] = [{"start": i, "end": i + 1, "weight": 1.0 + i} for i in range(len(text))]
    write(tmp_path, rows)
    whole = prepared(tmp_path, words)["train_dataset"]
    cut = prepared(tmp_path, words, cutoff_len=24)["train_dataset"]
    for full, short in zip(whole, cut, strict=True):
        for side in SIDES:
            assert short[f"{side}_scores"] == full[f"{side}_scores"][: len(response(short, side))]
    assert sum(map(len, cut["chosen_scores"])) < sum(map(len, whole["chosen_scores"]))


@pytest.mark.parametrize(
    "text",
    ["Plain words.", "  led by spaces\nand lines ", "Ça va – 🕷️🕷 ok", "日本語です。はい", "a", "x\n\n\ny"],
)
def test_offsets_spell_the_text(words, text):
    """Compare with the tokenizer's own offsets, which do not depend on the context of the text."""
    encoded = words(text, add_special_tokens=False, return_offsets_mapping=True)
    end = words.encode("<|im_end|>\n", add_special_tokens=False)
    offsets = TokenTexts(words).offsets([*encoded["input_ids"], *end], text)
    assert offsets[len(encoded["input_ids"]) :] == [(len(text), len(text))] * len(end)
    for (start, stop), (known_start, known_stop) in zip(offsets, encoded["offset_mapping"], strict=False):
        assert start <= known_start  # for tokens of one character, the tokenizer may give parts of it
        assert stop >= known_stop
        assert stop > start
    assert {place for start, stop in offsets for place in range(start, stop)} == set(range(len(text)))
    assert TokenTexts(words).offsets(encoded["input_ids"], text + "?!") is None


SCORED = {"chosen_scores": [0.0], "rejected_scores": [0.0]}
SPANNED = {"chosen_spans": [], "rejected_spans": []}
SPAN = {"start": 0, "end": 2, "weight": 1.0}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "dataset 'd.json' has the columns .*, which hold no scores .* give the rows chosen_scores"),
        ({"chosen_scores": [0.0]}, "which hold no scores"),
        ({**SCORED, **SPANNED}, "has both chosen_scores, rejected_scores and chosen_spans"),
        (SCORED, r"row 0 of dataset 'd.json': chosen_scores has 1 numbers, expected \d+, one for each token"),
        (
            {**SCORED, "chosen_scores": [float("nan")]},
            r"row 0 .*: chosen_scores\[0\] is (nan|None), expected a finite number",
        ),
        ({**SCORED, "rejected_scores": 3}, "row 0 .*: rejected_scores is 3, expected a list of numbers"),
        ({**SCORED, "rejected_scores": ["a"]}, r"rejected_scores\[0\] is 'a', expected a finite number"),
        (
            {**SPANNED, "chosen_spans": [{**SPAN, "end": 999}]},
            r"chosen_spans\[0\] has start 0 and end 999, expected 0 <= st",
        ),
        ({**SPANNED, "chosen_spans": [SPAN, {**SPAN, "end": 0}]}, r"chosen_spans\[1\] has start 0 and end 0"),
        ({**SPANNED, "rejected_spans": [{**SPAN, "start": -1}]}, r"rejected_spans\[0\] has start -1 and end 2"),
        ({**SPANNED, "rejected_spans": [{**SPAN, "start": 0.5}]}, r"has start 0.5 and end 2"),
        ({**SPANNED, "rejected_spans": [{"start": 0, "end": 1}]}, "expected an object with start, end and weight"),
        ({**SPANNED, "rejected_spans": [{**SPAN, "weight": float("inf")}]}, r"\[0\].weight is inf"),
        ({**SPANNED, "chosen_spans": "all"}, "chosen_spans is 'all', expected a list of spans"),
    ],
)
def test_bad_input_is_one_line_that_names_the_row(words, tmp_path, columns, message):
    write(tmp_path, [{**row, **columns} for row in tiny.pairs(2)])
    with pytest.raises(SepoError, match=message) as caught:
        prepared(tmp_path, words)
    assert "\n" not in str(caught.value)
