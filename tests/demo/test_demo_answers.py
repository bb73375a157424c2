"""Questions, pairs and results of the demonstration."""

import io
import json
from importlib import resources

import pytest
from rich.console import Console

from demo_pairs.answers import PAIRS, PROMPTS, UNSEEN_QUESTIONS, answer_pairs, generated_rows, heldout_rows
from demo_pairs.questions import TRAINED, UNSEEN, generate_questions
from sepo.demo.dataset import ANSWERS, write_dataset
from sepo.demo.results import demo_results, print_results
from sepo.hosts.llamafactory.demo import demo_recipe
from sepo.judges import find_judge
from sepo.runs.token_samples_reader import RECORD_FILE
from tests.support.recipes import environment, run

SHIPPED = resources.files("sepo.demo").joinpath("data")
JUDGE = find_judge("contains", whole_words=True)


def shipped(name):
    return json.loads(SHIPPED.joinpath(f"{name}.json").read_text(encoding="utf-8"))


def test_questions_are_distinct_and_have_both_values():
    for domains, count in ((TRAINED, 400), (UNSEEN, 120)):
        questions = generate_questions(domains, count)
        assert len({question.text for question in questions}) == count
        assert generate_questions(domains, 7) == questions[:7]
        for question in questions:
            assert JUDGE(question.text, {"required": [question.right, question.wrong]}), question
            assert JUDGE(question.answer, question.expected), question
            assert not JUDGE(question.answer.replace(question.right, question.wrong), question.expected), question
    assert generate_questions(TRAINED, 20, seed=1) != generate_questions(TRAINED, 20, seed=2)
    assert {domain.name for domain in TRAINED}.isdisjoint(domain.name for domain in UNSEEN)


def test_shipped_held_out_files_are_what_the_generator_writes():
    _, files = generated_rows()
    for name, rows in files.items():
        assert SHIPPED.joinpath(f"{name}.json").read_text(encoding="utf-8") == (
            json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        ), f"{name}: python -m demo_pairs.answers"
    assert len(files["answers_unseen"]) == UNSEEN_QUESTIONS


def test_shipped_pairs_are_a_wrong_response_against_a_right_one():
    """What was sampled is not generated again here; everything else is what the generator writes."""
    questions = {question.text: question for question in generated_rows()[0]}
    rows = shipped("answers_pairs")
    assert len(rows) == PAIRS <= PROMPTS
    for row in rows:
        question = questions[row["instruction"]]
        assert (row["expected"], row["domain"]) == (question.expected, question.domain)
        assert JUDGE(row["chosen"], row["expected"])
        assert not JUDGE(row["rejected"], row["expected"])
    own = sum(row["chosen"] != questions[row["instruction"]].answer for row in rows)
    assert own > len(rows) / 4  # the others are written
    heldout = {row["instruction"] for name in ANSWERS[1:] for row in shipped(name)}
    assert heldout.isdisjoint(row["instruction"] for row in rows)
    assert {row["domain"] for row in rows} == {domain.name for domain in TRAINED}
    settings = shipped("answers_source")["settings"]
    assert (settings["samples"], settings["temperature"], settings["prompts"]["number"]) == (4, 0.6, PROMPTS)
    assert len(settings["model"]["model"]) == 64


def test_pairs_take_the_first_responses_that_ended():
    questions = generate_questions(TRAINED, 3)

    def line(index, *responses):
        names = ("text", "right", "finished")
        return {"id": index, "responses": [dict(zip(names, each, strict=True)) for each in responses]}

    samples = [
        line(1, ("b1", False, True), ("b2", False, True)),
        line(0, ("cut", False, False), ("wrong", False, True), ("cut", True, False), ("right", True, True)),
        line(2, ("right", True, True), ("cut", False, False)),
    ]
    rows = answer_pairs(questions, samples)
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("right", "wrong"), (questions[1].answer, "b1")]
    assert answer_pairs(questions, samples, most=1) == rows[:1]


@pytest.mark.host
def test_the_host_reads_the_data_and_every_variant_is_planned(model_directory, tmp_path):
    recipe = demo_recipe(model_directory, write_dataset(tmp_path / "data"), tmp_path / "out")
    (tmp_path / "demo.yaml").write_text(json.dumps(recipe))
    done = run(["sepo", "compare", "demo.yaml", "--dry-run"], cwd=tmp_path, env=environment())
    for name in ("sepo-42", "random-42", "dpo-42", "sft-42"):
        assert name in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.fixture
def output(tmp_path):
    """Write a comparison whose policies give these answers to the first question of each part, and right ones else."""
    write_dataset(tmp_path / "data")
    first = {"before": "It is unclear", "sepo": None, "random": "{required} and {forbidden}", "dpo": None, "sft": None}
    for name, answer in first.items():
        folder = tmp_path / "evaluations" / ("before" if name == "before" else f"heldout/{name}-42")
        folder.mkdir(parents=True)
        lines = []
        for part in ANSWERS[1:]:
            for index, row in enumerate(shipped(part)):
                values = {"required": row["expected"]["required"], "forbidden": row["expected"]["forbidden"][0]}
                text = row["chosen"] if index or answer is None else answer.format(**values)
                right = JUDGE(text, row["expected"])
                lines.append({"prompt": row["instruction"], "answer": text, "finished": index != 1, "right": right})
        (folder / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = tmp_path / "runs" / "sepo-42"
    record.mkdir(parents=True)
    side = {
        "tokens": ["[red]", " tea", "<|im_end|>", "\n"],
        "scores": [0.0, 1.0, 0.0, 0.0],
        "selected": [1],
        "template": [3],
    }
    line = {"step": 1, "row": 0, "prompt": "", "chosen": side, "rejected": side}
    (record / RECORD_FILE).write_text(json.dumps(line) + "\n")
    return tmp_path


def test_results_count_answers_format_and_content(output):
    recipe = demo_recipe(output / "model", output / "data", output)
    results = demo_results(recipe, output)
    rows = len(shipped("answers_heldout"))
    found = {name: {what: parts["heldout"][what]["value"] for what in ("right", "one_value", "right_value")}
             for name, parts in results["variants"].items()}  # fmt: skip
    assert found["sepo"] == pytest.approx({"right": 1, "one_value": 1 - 1 / rows, "right_value": 1})
    assert found["before"] == pytest.approx(
        {"right": 1 - 1 / rows, "one_value": 1 - 2 / rows, "right_value": 1 - 1 / rows}
    )
    assert found["random"] == pytest.approx({"right": 1 - 1 / rows, "one_value": 1 - 2 / rows, "right_value": 1})
    assert results["questions"] == {"heldout": rows, "unseen": UNSEEN_QUESTIONS}
    examples = results["examples"]
    assert [example["domain"] for example in examples["answers"]] == [TRAINED[0].name, UNSEEN[0].name]
    assert {example["before"] for example in examples["answers"]} == {"It is unclear"}
    (pair,) = examples["pairs"]
    assert pair["question"] == shipped("answers_pairs")[0]["instruction"]
    assert [token["selected"] for token in pair["chosen"]] == [False, True, False]


def test_the_last_screen_shows_every_variant_and_escapes_texts(output):
    results = demo_results(demo_recipe(output / "model", output / "data", output), output)
    results["examples"]["answers"][0]["before"] = "[bold]a\n b"
    console = Console(file=io.StringIO(), width=120, record=True, highlight=False, soft_wrap=True)
    print_results(console, results)
    text = console.export_text()
    for title in ("before training", "SePO, 30 %", "random 30 %", "DPO, all tokens", "SFT, chosen responses"):
        assert title in text
    assert "[bold]a b -> " in text
    assert "[red]⟦ tea⟧⏎" in text
    colored = Console(file=io.StringIO(), width=120, record=True, force_terminal=True, color_system="standard")
    print_results(colored, results)
    assert "[red]\x1b[7m tea\x1b[0m⏎" in colored.export_text(styles=True)


def test_held_out_rows_are_right_against_ruled_out():
    for row in heldout_rows(generate_questions(UNSEEN, 30)):
        assert JUDGE(row["chosen"], row["expected"])
        assert not JUDGE(row["rejected"], row["expected"])
