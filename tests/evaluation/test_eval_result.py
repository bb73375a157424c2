"""eval.json: every key documented, plain JSON, stable; directories with results are not overwritten; the tables."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from sepo.errors import SepoError
from sepo.evaluation.benchmarks import BENCHMARKS, Question
from sepo.evaluation.correctness import Verdict
from sepo.evaluation.degeneration import degeneration
from sepo.evaluation.fields import FIELDS, SCHEMA_VERSION
from sepo.evaluation.generation import Decoding, Generated
from sepo.evaluation.preference import preference
from sepo.evaluation.prompts import AnsweredTurn, Prompt, PromptSet, question_prompts
from sepo.evaluation.report import print_result
from sepo.evaluation.result import EvaluatedPolicy, claimed_folder, result_values, write_results
from sepo.evaluation.run import Divergence, EvaluationSettings, PolicyResult, SetResult
from sepo.intervals import Estimate
from sepo.recipe.model_specs import ModelSpec

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BASE = ModelSpec("models/base")
TUNED = ModelSpec("models/base", ("saves/[red]run[/]",), 4)
HELDOUT = PromptSet(
    "heldout",
    [Prompt(Question(7, ("Why?",), {}), ({"role": "user", "content": "Why?"},), expected=["because"])],
    None,
    "pairs",
)
MT = question_prompts(BENCHMARKS["mt_bench"], [Question(81, ("One?", "Two?"), {"question_id": 81})], dataset="q.jsonl")


def judged(each, right):
    return [Verdict(each.prompts[0].question.id, right, True)] if each.benchmark is None else None


def policy(name, spec, *, reference, prompts, shift=0.0, judge=True):
    draw = np.random.default_rng(1)
    measures = ("summed", "length_normalized", "reward")[: 3 if reference else 2]
    margins = {measure: draw.normal(size=20) + shift for measure in measures}
    estimates = Estimate(0.25 + shift, 0.2, 0.3), Estimate(5.0, 4.0, 6.0)
    kl = Divergence(*estimates, 400, np.full(20, 5.0)) if reference else None
    sets = {}
    for each in prompts:
        answers = [
            [AnsweredTurn([1, 2], Generated((3, 4, 5), True), "text")] * len(p.question.turns) for p in each.prompts
        ]
        statistics = degeneration([[3, 4]] * len(answers[0]), [True] * len(answers[0]))
        sets[each.name] = SetResult(answers, statistics, kl, judged(each, bool(shift)) if judge else None)
    result = PolicyResult(
        margins, preference(margins), {"chosen": -20.0, "rejected": -30.0}, kl and {"chosen": kl, "rejected": kl}, sets,
        {"heldout": 1.234, "generations": 0.0},
    )  # fmt: skip
    return EvaluatedPolicy(name, spec, "float32", result, 3.456)


def values_of(*, before=True, reference=True, prompts=(HELDOUT, MT), judge=True):
    given = {"reference": reference, "prompts": prompts, "judge": judge}
    policies = {"before": policy("run-before", BASE, **given)} if before else {}
    policies["after"] = policy("run", TUNED, shift=1.0, **given)
    data = {"dataset": "pairs", "part": "eval", "pairs": 20, "template": None, "cutoff_len": 256}
    values = result_values(
        policies, reference=("ref_model", BASE) if reference else None, data=data, prompts=prompts,
        settings=EvaluationSettings(Decoding(64, 0.7, 3), 3, 512), versions={"torch": "2.11.0"},
        judge={"name": "exact", "options": {}, "column": "answer"} if judge else None,
    )  # fmt: skip
    return values, policies


def paths(values, stops, prefix=()):
    """Yield every path of a result, down to the fields that are documented as a whole."""
    for name, value in values.items():
        path = (*prefix, name)
        if any(matches(path, stop) for stop in stops) or not isinstance(value, dict) or not value:
            yield path
        else:
            yield from paths(value, stops, path)


def matches(path, field):
    parts = field.split(".")
    return len(parts) == len(path) and all(part in ("*", name) for part, name in zip(parts, path, strict=True))


def test_every_key_is_documented_and_every_documented_key_is_there():
    """`policies.*.kl` and `generations` are documented as a whole and by their fields."""
    deeper = [field for field in FIELDS if not any(other.startswith(f"{field}.") for other in FIELDS)]
    found = set()
    for before, reference, judge in itertools.product((True, False), repeat=3):
        found |= set(paths(values_of(before=before, reference=reference, judge=judge)[0], deeper))
    for path in found - {("policies", "before")}:
        assert any(matches(path, field) for field in FIELDS), path
    for field in FIELDS:
        assert any(matches(path[: field.count(".") + 1], field) for path in found), field


@pytest.mark.parametrize("file", sorted(RESULTS.glob("eval-*.json")), ids=lambda file: file.stem)
def test_recorded_results_have_this_schema(file):
    values = json.loads(file.read_text())
    assert values["schema_version"] == SCHEMA_VERSION
    deeper = [field for field in FIELDS if not any(other.startswith(f"{field}.") for other in FIELDS)]
    for path in paths(values, deeper):
        assert any(matches(path, field) for field in FIELDS), path
    assert list(values) == list(values_of()[0])


def test_the_result_is_plain_json_and_has_the_same_keys_in_any_case():
    full = values_of()[0]
    assert json.loads(json.dumps(full, allow_nan=False)) == full
    assert full["schema_version"] == SCHEMA_VERSION == 1
    assert (full["settings"]["decoding"], full["settings"]["seed"], full["settings"]["confidence"]) == (
        "sampling",
        3,
        0.95,
    )
    assert full["policies"]["after"]["model"] == {
        "model": "models/base",
        "adapters": ["saves/[red]run[/]"],
        "quantization_bit": 4,
    }
    assert full["change"]["summed"]["margin"]["value"] == pytest.approx(1.0)
    for before, reference in itertools.product((True, False), repeat=2):
        values = values_of(before=before, reference=reference, prompts=())[0]
        assert list(values) == list(full)
        assert list(values["policies"]) == ["before", "after"]
        assert list(values["policies"]["after"]) == list(full["policies"]["after"])
        assert list(values["policies"]["after"]["preference"]) == list(full["policies"]["after"]["preference"])
        assert (values["policies"]["before"] is None, values["change"] is None) == (not before, not before)
        assert (values["policies"]["after"]["kl"] is None, values["reference"] is None) == (
            not reference,
            not reference,
        )
        assert values["policies"]["after"]["generations"] == values["prompts"] == {}


def test_everything_is_written_and_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values, policies = values_of()
    folder = claimed_folder(None)
    assert folder.name == "eval_output"
    written = write_results(folder, values, policies, [HELDOUT, MT])
    assert [path.name for path in written] == ["eval.json", "generations.jsonl", "judges"]
    assert json.loads(written[0].read_text()) == values
    rows = [json.loads(line) for line in written[1].read_text().splitlines()]
    assert [(row["policy"], row["prompts"], row["id"], row["turn"], row["prompt"]) for row in rows] == [
        (role, *rest)
        for role in ("before", "after")
        for rest in (("heldout", 7, 0, "Why?"), ("mt_bench", 81, 0, "One?"), ("mt_bench", 81, 1, "Two?"))
    ]
    assert rows[0] | {"answer": "text", "tokens": 2, "finished": True} == rows[0]
    assert [(row.get("expected"), row.get("right", "none")) for row in rows] == [
        (["because"], False), (None, "none"), (None, "none"), (["because"], True), (None, "none"), (None, "none"),
    ]  # fmt: skip
    files = {str(path.relative_to(written[2])) for path in written[2].rglob("*") if path.is_file()}
    names = ("run", "run-before")
    assert files == {
        *(f"mt_bench/model_answer/{name}.jsonl" for name in names),
        *(f"heldout/alpaca_eval/{name}.json" for name in names),
        *(f"heldout/{judge}/model_answer/{name}.jsonl" for name in names for judge in ("arena_hard", "mt_bench")),
        *(f"heldout/{judge}/question.jsonl" for judge in ("arena_hard", "mt_bench")),
    }
    assert claimed_folder(None).name == "eval_output-2"  # empty so far, so it is claimed again
    assert claimed_folder(None).name == "eval_output-2"
    with pytest.raises(SepoError, match=r"-o eval_output has results already \(eval.json, generations.jsonl, judges\)"):
        claimed_folder(folder)


def test_directories_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SepoError, match="cannot create the directory"):
            claimed_folder(place)
    made = claimed_folder(tmp_path / "a" / "b")
    assert made.is_dir()
    (made / "notes.txt").write_text("a user's own")
    assert claimed_folder(made) == made


def test_verdicts_their_shares_and_their_change_are_in_the_result():
    values = values_of()[0]
    before, after = (values["policies"][role]["generations"] for role in ("before", "after"))
    assert after["heldout"]["correct"]["verdicts"] == [{"id": 7, "right": True, "finished": True}]
    assert before["heldout"]["correct"]["verdicts"] == [{"id": 7, "right": False, "finished": True}]
    assert (before["heldout"]["correct"]["right"]["value"], after["heldout"]["correct"]["right"]["value"]) == (0, 1)
    assert after["mt_bench"]["correct"] is None
    assert values["change"]["correct"]["right"] == {"value": 1.0, "low": None, "high": None}
    assert values["change"]["correct"]["finished"]["value"] == 0.0
    without = values_of(judge=False)[0]
    assert without["settings"]["judge"] is None
    assert without["change"]["correct"] is None
    assert without["policies"]["after"]["generations"]["heldout"]["correct"] is None


def test_nan_is_never_written(tmp_path):
    values, policies = values_of()
    values["policies"]["after"]["logps"]["chosen"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path, values, policies, [])
    assert not (tmp_path / "eval.json").exists()


def test_tables_contain_the_results(capsys):
    print_result(values_of()[0])
    text = capsys.readouterr().out
    for piece in ("20 pairs of pairs", "before", "change", "accuracy, summed", "margin, per token (nats)", "+1.000",
                  "KL, chosen (nats per token)", "0.2500 [0.2000, 0.3000]", "answers to heldout (pairs), sampling: 1",
                  "answers to mt_bench (q.jsonl), sampling: 2", "distinct-1, -2, -3", "1.000, 1.000, -", "0.000, -, -",
                  "right, of 1 judged", "+100.0 points", "right and finished, of 1", "without expected answer",
                  "after: models/base with saves/[red]run[/] in 4 bits", "reference: models/base"):  # fmt: skip
        assert piece in text, piece
    print_result(values_of(before=False)[0])
    text = capsys.readouterr().out
    assert "right, of 1 judged" in text
    assert "points" not in text
    print_result(values_of(judge=False)[0])
    assert "judged" not in capsys.readouterr().out
    print_result(values_of(before=False, reference=False, prompts=())[0])
    text = capsys.readouterr().out
    assert "no reference is set, so there is neither KL" in text
    for piece in ("before", "change", "log-ratio (nats)", "answers to"):
        assert piece not in text
