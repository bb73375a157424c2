"""The demonstration pairs: exact spans, shared wording, no leakage, the shipped bytes, difficulty of the errors."""

import collections
import contextlib
import json
import random
import re
import statistics
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo_pairs.__main__ import write_pairs
from demo_pairs.facts import OUT_OF_PLACE, load_tables, near_number
from demo_pairs.pairs import DEMO_ROWS, FLUENT_ROWS, generate_fluent_pairs, generate_pairs
from demo_pairs.passages import load_passages
from sepo.credit.measures import auroc
from sepo.demo.dataset import write_dataset
from sepo.errors import SepoError
from sepo.forward.sequences import LogProbScorer, ScoredSequence, ScoringModel

NAMES = ("demo_pairs", "demo_heldout", "fluent_pairs", "fluent_heldout")
FILES = (*(f"{name}.json" for name in NAMES), "dataset_info.json")
ANSWERS = ("answers_pairs.json", "answers_heldout.json", "answers_unseen.json")


GENERATORS = [pytest.param(generate_pairs, id="obvious"), pytest.param(generate_fluent_pairs, id="fluent")]


@pytest.fixture(scope="module", params=GENERATORS)
def pairs(request):
    return request.param()


@pytest.fixture(scope="module")
def fluent():
    return generate_fluent_pairs()


def prompts(rows):
    return [row["conversations"][0]["value"] for row in rows]


def shared_pieces(row):
    """Return the pieces of the rejected response between its wrong spans, including the first and the last one."""
    text, end = row["rejected"]["value"], 0
    for span in row["rejected_error_spans"]:
        yield text[end : span["start"]]
        end = span["end"]
    yield text[end:]


def counterparts(row):
    """Return the text of the chosen response at each wrong span of the rejected one, or None if the rest differs."""
    text = row["chosen"]["value"]
    first, *rest = shared_pieces(row)
    if not text.startswith(first):
        return None
    position, found = len(first), []
    for index, piece in enumerate(rest):
        last = index == len(rest) - 1
        start = len(text) - len(piece) if last else text.find(piece, position + 1)
        if start < position or (last and not text.endswith(piece)):
            return None
        found.append(text[position:start])
        position = start + len(piece)
    return found


PROMPT = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def check_row(row):
    assert row["conversations"][0]["from"] == "human"
    assert row["chosen"]["from"] == row["rejected"]["from"] == "gpt"
    rejected, end = row["rejected"]["value"], 0
    assert 1 <= len(row["rejected_error_spans"]) <= 3
    for span in row["rejected_error_spans"]:
        assert end <= span["start"] < span["end"] <= len(rejected)
        wrong = rejected[span["start"] : span["end"]]
        assert wrong == wrong.strip()
        assert span["type"].startswith("Wrong-")
        end = span["end"]
    right = counterparts(row)
    assert right is not None, row
    for span, value in zip(row["rejected_error_spans"], right, strict=True):
        assert value
        assert value != rejected[span["start"] : span["end"]], row
    assert row["rejected_spans"] == [
        {"start": span["start"], "end": span["end"], "weight": 1.0} for span in row["rejected_error_spans"]
    ]
    chosen = row["chosen"]["value"]
    spans = [(span["start"], span["end"]) for span in row["chosen_spans"]]
    assert all(span["weight"] == 1.0 for span in row["chosen_spans"])
    around = zip([0, *(end for _, end in spans)], [*(start for start, _ in spans), len(chosen)], strict=True)
    assert [chosen[end:start] for end, start in around] == list(shared_pieces(row))
    wrong_places = {i for span in row["rejected_error_spans"] for i in range(span["start"], span["end"])}
    for span in row["rejected_right_spans"]:
        assert not wrong_places & set(range(span["start"], span["end"]))
        assert rejected[span["start"] : span["end"]] in row["chosen"]["value"]


@given(seed=st.integers(0, 2**32), rows=st.integers(5, 600))
@settings(max_examples=10)
@pytest.mark.parametrize("generate", GENERATORS)
def test_every_row_is_exact_for_any_seed(generate, seed, rows):
    pairs = generate(seed=seed, rows=rows)
    heldout = rows // (5 if generate is generate_pairs else 2)
    assert (len(pairs.train), len(pairs.heldout)) == (rows - heldout, heldout)
    for row in (*pairs.train, *pairs.heldout):
        check_row(row)
    texts = prompts((*pairs.train, *pairs.heldout))
    assert len(set(texts)) == len(texts)
    assert generate(seed=seed, rows=rows) == pairs


@pytest.mark.parametrize("generate", GENERATORS)
def test_different_seeds_differ(generate):
    assert generate(seed=1).train != generate(seed=2).train


def test_no_prompt_and_no_response_is_in_both_parts(pairs):
    assert not set(prompts(pairs.train)) & set(prompts(pairs.heldout))
    assert not {row["chosen"]["value"] for row in pairs.train} & {row["chosen"]["value"] for row in pairs.heldout}


@pytest.mark.parametrize("table", load_tables(), ids=lambda table: table.name)
def test_groups_are_split_whole(table):
    from demo_pairs.pairs import _split

    train, heldout = _split(table, random.Random(0))
    assert train
    assert heldout
    assert not {fact.group for fact in train} & {fact.group for fact in heldout}
    assert len(train) + len(heldout) == len(table.facts)


def test_sizes_and_domains(pairs):
    assert len(pairs.train) >= 200
    assert len(pairs.heldout) >= 50
    domains = collections.Counter(row["domain"] for row in pairs.train)
    assert len(domains) >= 8
    assert max(domains.values()) < 0.2 * len(pairs.train)


def test_wrong_spans_are_everywhere_in_the_response(pairs):
    thirds = collections.Counter(
        min(2, 3 * span["start"] // len(row["rejected"]["value"]))
        for row in pairs.train
        for span in row["rejected_error_spans"]
    )
    assert all(thirds[third] > 0.15 * thirds.total() for third in range(3)), thirds
    counts = collections.Counter(len(row["rejected_error_spans"]) for row in pairs.train)
    assert all(counts[n] > 0.1 * len(pairs.train) for n in (1, 2, 3)), counts


def labelled_tokens(tokenizer, row, column):
    """Return token ids of the rejected response and whether each is in a span of ``column`` (leading space aside)."""
    text = row["rejected"]["value"]
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    marks = []
    for start, end in encoded["offset_mapping"]:
        start += text[start] == " "
        marks.append(any(max(start, span["start"]) < min(end, span["end"]) for span in row[column]))
    return encoded["input_ids"], marks


def test_length_and_share_in_tokens(pairs, tokenizer):
    shares, lengths = [], []
    for row in (*pairs.train, *pairs.heldout):
        ids, marks = labelled_tokens(tokenizer, row, "rejected_error_spans")
        shares.append(sum(marks) / len(ids))
        lengths.append(len(ids))
    print(f"wrong share {statistics.mean(shares):.3f}, answer tokens {statistics.mean(lengths):.1f}")
    assert 0.04 <= statistics.mean(shares) <= 0.3
    assert 0 < min(shares) <= max(shares) <= 0.45
    assert 10 <= min(lengths) <= max(lengths) <= 60


def test_a_value_is_one_token_right_or_wrong(fluent, tokenizer):
    """Chosen and rejected texts have equal lengths and differ only in the marked tokens."""
    for row in (*fluent.train, *fluent.heldout):
        ids, marks = labelled_tokens(tokenizer, row, "rejected_error_spans")
        chosen = tokenizer(row["chosen"]["value"], add_special_tokens=False)["input_ids"]
        assert [a != b for a, b in zip(ids, chosen, strict=True)] == marks, row
        assert sum(marks) == len(row["rejected_error_spans"])


def test_the_prompt_states_right_values_and_rules_out_wrong_ones(fluent):
    for row in (*fluent.train, *fluent.heldout):
        (prompt,) = prompts([row])
        for span, right in zip(row["rejected_error_spans"], counterparts(row), strict=True):
            wrong = row["rejected"]["value"][span["start"] : span["end"]]
            stated = rf"\b{right} \(not {wrong}\)|\b{right},? (not|instead of|rather than) {wrong}\b"
            assert re.search(stated, prompt, re.IGNORECASE), (row, right, wrong)
        assert not re.search(r",[,.]|\b[Aa] [aeio]|  ", prompt), prompt


def test_a_value_is_drawn_once_and_types_are_of_their_values():
    kinds = {"Wrong-Name", "Wrong-Number", "Wrong-Polarity", "Wrong-Word"}
    for passage in load_passages():
        assert set(passage.types.values()) <= kinds
        assert {"Wrong-Number", "Wrong-Polarity"} & set(passage.types.values())
        for words in passage.pools.values():
            assert len(set(words)) == len(words) >= 2


def test_obvious_errors_are_words_of_another_domain_and_single_tokens(tokenizer):
    """An error of several tokens would be one wrong token and its consequences, which are not wrong by themselves."""
    home = {word.lower(): domain for domain, words in OUT_OF_PLACE.items() for word in words}
    pairs = generate_pairs()
    for row in (*pairs.train, *pairs.heldout):
        for span in row["rejected_error_spans"]:
            wrong = row["rejected"]["value"][span["start"] : span["end"]]
            assert home[wrong.lower()] != row["domain"], row
        _, marks = labelled_tokens(tokenizer, row, "rejected_error_spans")
        assert sum(marks) == len(row["rejected_error_spans"]), row


def test_out_of_place_words_are_right_values_of_their_own_domain():
    right = {(table.domain, value) for table in load_tables() for fact in table.facts for value in fact.values.values()}
    assert {(domain, word) for domain, words in OUT_OF_PLACE.items() for word in words} <= right


def test_no_token_rule_separates_fluent_wrong_values_from_right_ones(fluent, tokenizer):
    """A table of token ids, counted on labelled training rows, hardly separates held-out values."""
    pairs = fluent
    seen, bad = collections.Counter(), collections.Counter()
    for row in pairs.train:
        ids, marks = labelled_tokens(tokenizer, row, "rejected_error_spans")
        seen.update(ids)
        bad.update(token for token, mark in zip(ids, marks, strict=True) if mark)
    prior = bad.total() / seen.total()
    scores = {True: [], False: []}
    for row in pairs.heldout:
        ids, wrong = labelled_tokens(tokenizer, row, "rejected_error_spans")
        _, right = labelled_tokens(tokenizer, row, "rejected_right_spans")
        for token, is_wrong, is_right in zip(ids, wrong, right, strict=True):
            if is_wrong or is_right:
                scores[is_wrong].append((bad[token] + 2 * prior) / (seen[token] + 2))
    wins = [(a > b) + (a == b) / 2 for a in scores[True] for b in scores[False]]
    auroc = statistics.mean(wins)
    print(f"token rule among values: AUROC {auroc:.3f} ({len(scores[True])} wrong, {len(scores[False])} right)")
    assert auroc < 0.7


def test_fluent_errors_are_hardly_more_surprising_than_the_rest(fluent, model, tokenizer):
    """Surprisal under the base model does not find these errors, which is the purpose of the fluent set."""
    sequences, marks = [], []
    for row in fluent.heldout[:32]:
        answer, wrong = labelled_tokens(tokenizer, row, "rejected_error_spans")
        (question,) = prompts([row])
        prompt = tokenizer(PROMPT.format(question=question), add_special_tokens=False)["input_ids"]
        sequences.append(ScoredSequence((*prompt, *answer), len(prompt)))
        marks.append(np.array(wrong))
    scorer = LogProbScorer(ScoringModel(model, contextlib.nullcontext), batch_tokens=2048)
    found = [auroc(scores.numpy(), wrong) for scores, wrong in zip(scorer.score(sequences), marks, strict=True)]
    print(f"surprisal: AUROC {statistics.mean(found):.3f}")
    assert statistics.mean(found) < 0.7


@pytest.mark.parametrize(("write", "files"), [(write_pairs, FILES), (write_dataset, (*FILES, *ANSWERS))])
def test_shipped_files_are_what_the_generator_writes(tmp_path, write, files):
    write(tmp_path)
    shipped = resources.files("sepo.demo").joinpath("data")
    for name in files:
        assert (tmp_path / name).read_bytes() == shipped.joinpath(name).read_bytes(), f"{name}: python -m demo_pairs"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_dataset_info_is_llamafactorys(tmp_path):
    folder = write_dataset(tmp_path / "new" / "folder")
    info = json.loads((folder / "dataset_info.json").read_text())
    assert {entry["file_name"] for entry in info.values()} == {*FILES, *ANSWERS} - {"dataset_info.json"}
    for name, entry in info.items():
        assert entry.get("ranking", False) == (name != "answers_chosen")
        rows = json.loads((folder / entry["file_name"]).read_text())
        assert all(column in rows[0] for column in entry["columns"].values())
    for name in NAMES:
        assert info[name]["formatting"] == "sharegpt"
        assert set(info[name]["columns"]) == {"messages", "chosen", "rejected"}


def test_other_datasets_are_not_overwritten(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"mine": {}}')
    with pytest.raises(SepoError, match="mine"):
        write_dataset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_info.json"]


@pytest.mark.parametrize(
    ("generate", "rows"),
    [(generate_pairs, -1), (generate_pairs, 0), (generate_pairs, 10**6), (generate_fluent_pairs, 0)],
)
def test_errors_of_invalid_sizes_name_the_valid_ones(generate, rows):
    with pytest.raises(SepoError, match=rf"rows={rows}; expected at least 1"):
        generate(rows=rows)


@given(value=st.integers(1, 9000), seed=st.integers(0, 1000))
def test_near_numbers_differ_in_their_first_digit(value, seed):
    near = near_number(value, random.Random(seed))
    assert near > 0
    assert str(near)[0] != str(value)[0]
    assert near % 2 == value % 2


def test_default_sizes_are_the_shipped_ones(fluent):
    pairs = generate_pairs()
    assert (len(pairs.train), len(pairs.heldout)) == (DEMO_ROWS - DEMO_ROWS // 5, DEMO_ROWS // 5)
    assert (len(fluent.train), len(fluent.heldout)) == (FLUENT_ROWS // 2, FLUENT_ROWS // 2)


class TestTrueStatements:
    """Computed facts are recomputed from the chosen text alone."""

    def test_numbers_in_conversions_and_sums(self):
        tables = {table.name: table for table in load_tables()}
        for fact in tables["conversions"].facts:
            values = fact.values
            assert int(values["n"]) * int(values["ratio"]) == int(values["result"])
        for fact in tables["arithmetic"].facts:
            a, b, result = (int(fact.values[name]) for name in ("a", "b", "result"))
            assert result == {"add": a + b, "subtract": a - b, "multiply": a * b}[fact.when]
            assert fact.values["parity"] == ("odd" if result % 2 else "even") != fact.wrong["parity"]

    def test_wrong_values_of_calculated_facts_are_wrong(self):
        for table in load_tables():
            for fact in table.facts:
                for name, wrong in fact.wrong.items():
                    assert wrong != fact.values[name], (table.name, fact)

    def test_every_written_entity_appears_once(self):
        entities = [fact.group for table in load_tables() for fact in table.facts if not fact.wrong]
        assert len(entities) >= 200
