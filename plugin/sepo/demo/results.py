"""Results of the demonstration: right answers by variant and kind of question, and examples with selected tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepo.evaluation.result import GENERATIONS
from sepo.intervals import share
from sepo.judges import find_judge
from sepo.runs.token_samples_reader import RecordedAnswer, read_record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

BEFORE = "before"
"""Name of the model before training in the results and of the directory of its evaluation."""

_SHOWN = "sepo"
_EXAMPLES = 4
_PARTS = {"answers_heldout": "heldout", "answers_unseen": "unseen"}
_MEASURES = ("right", "one_value", "right_value")
_TITLES = {
    "before": "before training",
    "sepo": "SePO, 30 % of the tokens",
    "random": "random 30 % of the tokens",
    "dpo": "DPO, all tokens",
    "sft": "SFT, chosen responses",
}


def demo_results(recipe: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Read the answers of all variants.

    Args:
        recipe: keys and values of the demonstration's comparison.
        output: its directory, with the evaluations.

    Returns:
        ``variants`` by name and, for ``heldout`` and ``unseen`` questions, the share, with Wilson's 95 % interval, of
        answers that are ``right`` (the right value and not the ruled-out one), that end and name one of both values
        (``one_value``, the format) and that name the right value (``right_value``, the content); ``pairs`` and
        ``questions`` are numbers of rows, ``examples`` questions whose answer became right and training pairs with
        selected tokens.
    """
    data = Path(recipe["dataset_dir"])
    rows = {part: _rows(data / f"{name}.json") for name, part in _PARTS.items()}
    seed = recipe["seeds"][0]
    answers = {
        name: _answers(output / "evaluations" / (name if name == BEFORE else f"heldout/{name}-{seed}"))
        for name in (BEFORE, *recipe["variants"])
    }
    pairs = _rows(data / "answers_pairs.json")
    return {
        "model": Path(recipe["model_name_or_path"]).name,
        "pairs": len(pairs),
        "steps": recipe["max_steps"],
        "questions": {part: len(found) for part, found in rows.items()},
        "domains": {part: list(dict.fromkeys(row["domain"] for row in found)) for part, found in rows.items()},
        "variants": {name: {part: _shares(found, answers[name]) for part, found in rows.items()} for name in answers},
        "examples": {
            "run": f"{_SHOWN}-{seed}",
            "answers": _became_right(rows, answers[BEFORE], answers[_SHOWN]),
            "pairs": _trained_pairs(output / "runs" / f"{_SHOWN}-{seed}", pairs),
        },
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def _answers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the generated answers of an evaluation by question."""
    lines = (folder / GENERATIONS).read_text(encoding="utf-8").splitlines()
    return {line["prompt"]: line for line in map(json.loads, lines)}


def _shares(rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    names = find_judge("contains", whole_words=True)
    counts = dict.fromkeys(_MEASURES, 0)
    for row in rows:
        answer, expected = answers[row["instruction"]], row["expected"]
        right, *others = (names(answer["answer"], value) for value in (expected["required"], *expected["forbidden"]))
        counts["right"] += answer["right"]
        counts["one_value"] += answer["finished"] and right + sum(others) == 1
        counts["right_value"] += right
    estimates = {name: share(count, len(rows)) for name, count in counts.items()}
    return {name: {"value": each.value, "low": each.low, "high": each.high} for name, each in estimates.items()}


def _became_right(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, str]]:
    """Return a question of each domain whose answer was wrong and is right, the unseen domains last."""
    found: dict[str, dict[str, str]] = {}
    for part in rows.values():
        for row in part:
            question, domain = row["instruction"], row["domain"]
            if domain not in found and after[question]["right"] and not before[question]["right"]:
                texts = {"before": before[question]["answer"], "after": after[question]["answer"]}
                found[domain] = {"domain": domain, "question": question, **texts}
    return list(found.values())


def _trained_pairs(run: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a recorded training pair of each domain, with its selected tokens."""
    found: dict[str, dict[str, Any]] = {}
    for pair in read_record(run)[0]:
        domain = None if pair.row is None else rows[pair.row]["domain"]
        if domain is not None and domain not in found:
            sides = {"chosen": _marked(pair.chosen), "rejected": _marked(pair.rejected)}
            found[domain] = {"domain": domain, "question": rows[pair.row or 0]["instruction"], **sides}
    return list(found.values())


def _marked(answer: RecordedAnswer) -> list[dict[str, Any]]:
    candidates = answer.candidates or (True,) * len(answer.tokens)
    tokens = zip(answer.tokens, answer.selected, candidates, strict=True)
    return [{"token": token, "selected": selected} for token, selected, candidate in tokens if candidate]


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print the last screen of the demonstration.

    Args:
        console: where it is printed.
        results: from ``demo_results``.
    """
    questions, domains = results["questions"], results["domains"]
    console.print(
        f"   Each run trained {results['steps']} steps on {results['pairs']} pairs and then answered questions that no "
        "run has read."
    )
    console.print(_table(results))
    console.print(
        f"   questions: {questions['heldout']} of the kinds in the pairs ({', '.join(domains['heldout'])}) and\n"
        f"   {questions['unseen']} of other kinds ({', '.join(domains['unseen'])}).\n"
        "   right: names the right value and not the ruled-out one; format: ends and names one of both values;\n"
        "   content: names the right value."
    )
    before = {name: each["value"] for name, each in results["variants"][BEFORE]["heldout"].items()}
    console.print(
        f"   Before training, {before['right_value']:.0%} of the answers name the right value and "
        f"{before['right']:.0%} name it alone: most of what\n   can be gained here is form."
    )
    console.print("   [bold]answers before and after SePO[/]")
    for example in results["examples"]["answers"][-_EXAMPLES:]:
        question = example["question"].removesuffix(" Answer in one short sentence.")
        console.print(f"     {question}", markup=False)
        console.print(f"       [red]{_line(example['before'])}[/] -> [green]{_line(example['after'])}[/]")
    brackets = not console.is_terminal or console.no_color
    selected = "⟦selected⟧" if brackets else "[reverse]selected[/]"
    console.print(
        f"   [bold]what SePO trained on:[/] the {selected} tokens of a chosen (+) and a rejected (-) response"
    )
    for example in results["examples"]["pairs"][:_EXAMPLES]:
        for side, sign in (("chosen", "+"), ("rejected", "-")):
            console.print(_highlighted(f"     {sign} ", example[side], brackets=brackets))
    console.print(
        "   This shows that a recipe of some lines changes what a model answers, and how that carries over to other\n"
        "   kinds of questions. It does not show which method is best: one seed, one small model, one kind of task.\n"
        "   `sepo compare` answers that on your data."
    )


def _table(results: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("", no_wrap=True)
    for title in ("right", "format", "content", "right, other kinds"):
        table.add_column(title, justify="right")
    for name, parts in results["variants"].items():
        first, second = parts["heldout"], parts["unseen"]
        cells = [_percent(first["right"]), *(f"{first[each]['value']:.0%}" for each in _MEASURES[1:])]
        style = "bold" if name == _SHOWN else None
        table.add_row(f"   {_TITLES.get(name, name)}", *cells, _percent(second["right"]), style=style)
    return table


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.0%} \\[{estimate['low']:.0%}, {estimate['high']:.0%}]"


def _line(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


def _highlighted(start: str, tokens: Sequence[Mapping[str, Any]], *, brackets: bool) -> Text:
    from rich.text import Text

    line = Text(start)
    for token in tokens:
        text = str(token["token"]).replace("<|im_end|>", "⏎").replace("\n", " ")
        if brackets:
            line.append(f"⟦{text}⟧" if token["selected"] else text)
        else:
            line.append(text, style="reverse" if token["selected"] else "")
    return line
