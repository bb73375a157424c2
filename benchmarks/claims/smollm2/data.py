"""The data sets as a directory of LLaMA-Factory, and the pairs of sampled responses with their wrong tokens marked."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sepo.files import write_whole

from . import invitations
from .invitations import FACTS, Question

START, PROMPTS, CREDIT = "invitations_start", "invitations_prompts", "invitations_credit"
VALIDATION, HELD_OUT = "invitations_validation", "invitations_held_out"
PAIRS, CHOSEN, CREDIT_PAIRS = "invitations_pairs", "invitations_chosen", "invitations_credit_pairs"
EXPECTED = "expected"
ERROR = "Wrong-Value"
_SENTENCE = re.compile(r"(?<=[.!]) ")
SIZES = ("start", "prompts", "credit", "validation", "held_out")
"""Numbers of rows that ``write_questions`` takes."""

_SINGLE = {"columns": {"prompt": "instruction", "response": "output"}}
_PAIR = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}


def write_questions(
    folder: Path, *, revised: int, start: int, prompts: int, credit: int, validation: int, held_out: int, seed: int
) -> None:
    """Write the data sets that need no model, with so many rows each; no question is in two of them.

    The rows of ``START`` have the answers that the starting policy learns, wrong values among them. ``PROMPTS`` are the
    questions of the pairs to train on. Those of ``CREDIT`` (pairs to measure the oracle on), ``VALIDATION`` and
    ``HELD_OUT`` have pairs of values that are in no other data set. Rows of the last two are pairs, as `sepo compare`
    reads them: a sentence with the values that hold, and the same with ruled-out ones. The measures of these pairs are
    no result of the study, and those of whole responses would take as long as answering.
    """
    draw = random.Random(seed)
    sizes = {START: start, PROMPTS: prompts, CREDIT: credit, VALIDATION: validation, HELD_OUT: held_out}
    seen: set[str] = set()
    questions: dict[str, list[Question]] = {name: [] for name in sizes}
    for name, size in sizes.items():
        while len(questions[name]) < size:
            found = invitations.question(draw, revised=revised, held_out=name in (CREDIT, VALIDATION, HELD_OUT))
            if found.text not in seen:
                seen.add(found.text)
                questions[name].append(found)
    rows = {
        START: [_single(found, draw, misconceived=invitations.MISCONCEIVED) for found in questions[START]],
        **{name: [_single(found, draw) for found in questions[name]] for name in (PROMPTS, CREDIT)},
        **{name: [_pair(found, draw) for found in questions[name]] for name in (VALIDATION, HELD_OUT)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        _write(folder / f"{name}.json", found)
    single, pair = (START, PROMPTS, CREDIT), (VALIDATION, HELD_OUT, PAIRS)
    info = {name: {"file_name": f"{name}.json", **_SINGLE} for name in single}
    info |= {name: {"file_name": f"{name}.json", **_PAIR} for name in pair}
    info[CHOSEN] = {"file_name": f"{PAIRS}.json", "columns": {"prompt": "instruction", "response": "chosen"}}
    _write(folder / "dataset_info.json", info)


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
    """Write the pairs of `sepo pairs` as ``PAIRS`` and ``CREDIT_PAIRS``, with the known tokens of both responses.

    Pairs whose rejected response has no wrong value, as it only lacks facts, have no known token and are left out.

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
    """Return a pair with its known tokens.

    ``chosen_error_spans`` and ``rejected_error_spans`` are the wrong values. ``chosen_spans`` and ``rejected_spans``,
    which ``token_scorer: file`` reads, are the tokens that known credit selects: in the rejected response the wrong
    values, in the chosen one the right values of the facts that the rejected one has wrong, or if there are none, of
    all facts.
    """
    holds = values_of(sample["expected"])
    texts = {side: sample["responses"][sample[side]]["text"] for side in ("chosen", "rejected")}
    found = {side: invitations.spans(text, holds) for side, text in texts.items()}
    wrong = {side: [span for span in spans if not span.right] for side, spans in found.items()}
    missed = {span.fact for span in wrong["rejected"]}
    right = [span for span in found["chosen"] if span.right]
    known = [span for span in right if span.fact in missed] or right
    row = {"instruction": sample["messages"][-1]["content"], **texts, EXPECTED: sample["expected"]}
    for side, spans in wrong.items():
        row[f"{side}_error_spans"] = [{"start": span.start, "end": span.end, "type": ERROR} for span in spans]
    for side, spans in (("chosen", known), ("rejected", wrong["rejected"])):
        row[f"{side}_spans"] = [{"start": span.start, "end": span.end, "weight": 1.0} for span in spans]
    row["conversations"] = [{"from": "human", "value": row["instruction"]}]  # as `sepo credit` reads a prompt
    return row


def values_of(expected: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that hold, by fact, from an expected answer."""
    return dict(zip(FACTS, expected["required"], strict=True))


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1) + "\n")
