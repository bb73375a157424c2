"""The data sets as a directory of LLaMA-Factory, and the pairs of sampled responses with their wrong values marked."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims.invitations import questions as invitations
from claims.invitations.questions import FACTS, Question
from sepo.files import write_whole

START, PROMPTS, CREDIT = "invitations_start", "invitations_prompts", "invitations_credit"
VALIDATION = "invitations_validation"
PAIRS, CHOSEN, CREDIT_PAIRS = "invitations_pairs", "invitations_chosen", "invitations_credit_pairs"
EXPECTED = "expected"
ERROR = "Wrong-Value"
_SENTENCE = re.compile(r"(?<=[.!]) ")
_SINGLE = {"columns": {"prompt": "instruction", "response": "output"}}
_PAIR = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}


@dataclass(frozen=True)
class Sizes:
    """Numbers of questions.

    Args:
        start: those of the answers that the starting policy learns.
        prompts: those of the pairs to train on.
        credit: those of the pairs on which oracles are measured.
        validation: those by which learning rates are chosen.
        held_out: those of the results, for each seed.
    """

    start: int = 640
    prompts: int = 512
    credit: int = 48
    validation: int = 48
    held_out: int = 96


def held_out_name(seed: int) -> str:
    """Return the name of the data set with the held-out questions of a seed."""
    return f"invitations_held_out_{seed}"


def write_questions(folder: Path, *, revised: int, sizes: Sizes, seeds: Sequence[int], first: int = 0) -> None:
    """Write the data sets that need no model; no question is in two of them.

    The rows of ``START`` have the answers that the starting policy learns, wrong values among them. ``PROMPTS`` are the
    questions of the pairs to train on. Those of ``CREDIT`` (pairs to measure the oracle on), ``VALIDATION`` and of the
    held-out questions have pairs of values that are in neither. Rows of the last two are pairs, as `sepo compare`
    reads them: a sentence with the values that hold, and the same with ruled-out ones. The measures of these pairs are
    no result of the study, and those of whole responses would take as long as answering.

    Args:
        folder: the directory, a ``dataset_dir`` of LLaMA-Factory.
        revised: number of revised facts of a question.
        sizes: numbers of questions.
        seeds: the seeds with held-out questions of their own.
        first: seed of the draws; those of held-out questions after the first seed's follow it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()

    def drawn(draw: random.Random, counts: Mapping[str, int]) -> dict[str, list[Question]]:
        found: dict[str, list[Question]] = {name: [] for name in counts}
        for name, count in counts.items():
            while len(found[name]) < count:
                asked = invitations.question(draw, revised=revised, held_out=name not in (START, PROMPTS))
                if asked.text not in seen:
                    seen.add(asked.text)
                    found[name].append(asked)
        return found

    draw = random.Random(first)
    counts = {START: sizes.start, PROMPTS: sizes.prompts, CREDIT: sizes.credit, VALIDATION: sizes.validation}
    asked = drawn(draw, counts | {held_out_name(seeds[0]): sizes.held_out})
    rows: dict[str, list[dict[str, Any]]] = {
        START: [_single(each, draw, misconceived=invitations.MISCONCEIVED) for each in asked[START]],
        **{name: [_single(each, draw) for each in asked[name]] for name in (PROMPTS, CREDIT)},
        **{name: [_pair(each, draw) for each in asked[name]] for name in (VALIDATION, held_out_name(seeds[0]))},
    }
    for number, seed in enumerate(seeds[1:], start=1):
        draw, name = random.Random(first + number), held_out_name(seed)
        rows[name] = [_pair(each, draw) for each in drawn(draw, {name: sizes.held_out})[name]]
    for name, found in rows.items():
        _write(folder / f"{name}.json", found)
    info = {name: {"file_name": f"{name}.json", **_SINGLE} for name in (START, PROMPTS, CREDIT)}
    info |= {name: {"file_name": f"{name}.json", **_PAIR} for name in (*(set(rows) - set(info)), PAIRS)}
    info[CHOSEN] = {"file_name": f"{PAIRS}.json", "columns": {"prompt": "instruction", "response": "chosen"}}
    _write(folder / "dataset_info.json", dict(sorted(info.items())))


def _single(asked: Question, draw: random.Random, *, misconceived: float = 0.0) -> dict[str, Any]:
    output = invitations.answer(asked, draw, misconceived=misconceived)
    return {"instruction": asked.text, "output": output, EXPECTED: asked.expected}


def _pair(asked: Question, draw: random.Random) -> dict[str, Any]:
    wording = draw.getrandbits(32)
    responses = [invitations.answer(asked, random.Random(wording), misconceived=share) for share in (0.0, 1.0)]
    sentences = zip(*(_SENTENCE.split(response) for response in responses), strict=True)
    chosen, rejected = next((right, wrong) for right, wrong in sentences if right != wrong)
    return {"instruction": asked.text, "chosen": chosen, "rejected": rejected, EXPECTED: asked.expected}


def write_pairs(folder: Path, samples: Iterable[str]) -> None:
    """Write the pairs of `sepo pairs` as ``PAIRS`` and ``CREDIT_PAIRS``, with the wrong values of both responses.

    Pairs whose rejected response has no wrong value, as it only lacks facts, are left out.

    Args:
        folder: the directory of ``write_questions``.
        samples: lines of ``samples.jsonl``.
    """
    of_credit = {row["instruction"] for row in json.loads((folder / f"{CREDIT}.json").read_text(encoding="utf-8"))}
    rows: dict[str, list[dict[str, Any]]] = {PAIRS: [], CREDIT_PAIRS: []}
    for line in samples:
        sample = json.loads(line)
        if sample["chosen"] is None:
            continue
        row = _sampled_pair(sample)
        if row["rejected_error_spans"]:
            rows[CREDIT_PAIRS if row["instruction"] in of_credit else PAIRS].append(row)
    for name, found in rows.items():
        _write(folder / f"{name}.json", found)


def pair_counts(folder: Path) -> dict[str, dict[str, int]]:
    """Return the numbers of the pairs of ``write_pairs``, and of those whose chosen response has a wrong value, too."""
    rows = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in (PAIRS, CREDIT_PAIRS)}
    return {
        name: {"pairs": len(found), "chosen_with_wrong_values": sum(bool(row["chosen_error_spans"]) for row in found)}
        for name, found in rows.items()
    }


def _sampled_pair(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pair; ``chosen_error_spans`` and ``rejected_error_spans`` are the wrong values."""
    holds = values_of(sample["expected"])
    texts = {side: sample["responses"][sample[side]]["text"] for side in ("chosen", "rejected")}
    row = {"instruction": sample["messages"][-1]["content"], **texts, EXPECTED: sample["expected"]}
    for side, text in texts.items():
        wrong = [span for span in invitations.spans(text, holds) if not span.right]
        row[f"{side}_error_spans"] = [{"start": span.start, "end": span.end, "type": ERROR} for span in wrong]
    row["conversations"] = [{"from": "human", "value": row["instruction"]}]  # as `sepo credit` reads a prompt
    return row


def values_of(expected: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that hold, by fact, from an expected answer."""
    return dict(zip(FACTS, expected["required"], strict=True))


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1) + "\n")
