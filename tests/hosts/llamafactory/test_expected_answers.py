"""The column of expected answers through the host's data pipeline, and refused columns and values."""

import json

import pytest
from llamafactory.data import loader
from transformers import AutoTokenizer

from sepo.errors import SepoError
from sepo.hosts.llamafactory.conversations import conversations_kept
from sepo.hosts.llamafactory.expected_answers import JudgeRequest, carried_expected_answers
from sepo.hosts.llamafactory.prompt_rows import dataset_prompts
from sepo.judges import Judge, find_judge
from sepo.text.conversations import CONVERSATION, EVALUATED, EXPECTED
from sepo.training.row_losses import RowLosses
from tests.support import tiny
from tests.support.recipes import sepo_recipe
from tests.support.rows import prepared

RANKED = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}


@pytest.fixture(scope="module")
def words(world):
    return AutoTokenizer.from_pretrained(world / "policy")


def write(folder, rows, name="d"):
    (folder / f"{name}.json").write_text(json.dumps(rows))
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text()) if path.exists() else {}
    info[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "ranking": True, "columns": RANKED}
    path.write_text(json.dumps(info))


def tokenized(folder, words, *, judge="contains", column="answer", **options):
    with carried_expected_answers(find_judge(judge), column), conversations_kept(True, EVALUATED):
        return prepared(folder, words, carry=False, **options)


def answers_of(rows):
    """Return the expected answer of each row by its prompt."""
    return {
        json.loads(row[CONVERSATION])["messages"][0]["content"]: row[EXPECTED] and json.loads(row[EXPECTED])
        for row in rows
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_answers_stay_with_their_rows(words, tmp_path, workers):
    """Through the converter, a row that the host drops, the split, and a second data set with another type."""
    rows = [{**row, "answer": f"{index % 9}" if index % 3 else None} for index, row in enumerate(tiny.pairs(9))]
    write(tmp_path, [*rows[:2], {**rows[0], "conversations": []}, *rows[2:]])
    wanted = {"required": ["8", "legs"], "forbidden": None}
    other = [{**row, "answer": wanted} for row in tiny.pairs(12)[9:]]
    write(tmp_path, other, "e")
    expected = {row["conversations"][0]["value"]: row["answer"] for row in [*rows, *other]}
    before = loader.align_dataset, loader.PairwiseDatasetProcessor
    found = tokenized(tmp_path, words, dataset="d,e", val_size=0.25, preprocessing_num_workers=workers)
    assert (loader.align_dataset, loader.PairwiseDatasetProcessor) == before
    assert {**answers_of(found["train_dataset"]), **answers_of(found["eval_dataset"])} == expected
    assert len(found["eval_dataset"]) == 3


@pytest.mark.parametrize(("values", "read"), [([8, None], [8, None]), ([["8", "eight"], []], [["8", "eight"], None])])
def test_numbers_lists_and_rows_without_an_answer(words, tmp_path, values, read):
    write(tmp_path, [{**row, "answer": value} for row, value in zip(tiny.pairs(2), values, strict=True)])
    assert list(answers_of(tokenized(tmp_path, words)["train_dataset"]).values()) == read


def test_a_missing_column_is_an_error_with_the_columns(words, tmp_path):
    write(tmp_path, [{**row, "answers": "8"} for row in tiny.pairs(2)])
    message = r"dataset 'd.json' has the columns conversations, chosen, rejected, answers, expected answer .* mean 'ans"
    with pytest.raises(SepoError, match=message):
        tokenized(tmp_path, words)


def test_a_value_that_the_judge_does_not_take_names_its_row(words, tmp_path):
    write(tmp_path, [{**row, "answer": value} for row, value in zip(tiny.pairs(2), ["8", "(8"], strict=True)])
    with pytest.raises(SepoError, match=r"row 1 of dataset 'd.json', column answer: the regular expression '\(8' "):
        tokenized(tmp_path, words, judge="regex")
    assert answers_of(tokenized(tmp_path, words)["train_dataset"])


def test_only_rewards_can_be_numbers(world, words, tmp_path):
    """A registered judge may return a number; where right and wrong are counted, that is refused with the first row."""
    write(tmp_path, [{**row, "answer": "8"} for row in tiny.pairs(2)])
    judge = Judge(lambda response, expected: 0.25)
    with (
        pytest.raises(SepoError, match=r"column answer: the judge returned 0\.25, expected True or False"),
        carried_expected_answers(judge, "answer"),
    ):
        prepared(tmp_path, words, carry=False)
    recipe = sepo_recipe(world, tmp_path / "run", dataset="d", dataset_dir=str(tmp_path))
    found = dataset_prompts(recipe, judge=judge, column="answer", losses=RowLosses())
    assert [prompt.expected for prompt in found.prompts] == ["8", "8"]


def test_a_judge_needs_a_column():
    with pytest.raises(SepoError, match="--judge exact compares with expected answers, but no column is named; add"):
        JudgeRequest("exact").judge()
    assert JudgeRequest("exact", {"ignore_case": "true"}, "answer").judge()("A", "a")
