"""The data sets as a directory of LLaMA-Factory: rows for SFT, prompts for `sepo pairs` and RTO, held-out questions."""

import json
import random
from pathlib import Path

from . import world

SFT, PROMPTS, VALIDATION, HELD_OUT = "weekdays_sft", "weekdays_prompts", "weekdays_validation", "weekdays_held_out"
EXPECTED = "expected"


def write_data(folder: Path, *, moves: int, sft: int, prompts: int, validation: int, held_out: int, seed: int) -> None:
    """Write the data sets of a seed, with so many rows each; no question is in two of them.

    Questions for SFT may repeat; those of other data sets are left out.

    Rows for SFT have the answers that the model is to learn, right and wrong ones. Prompts are SFT rows too, with the
    right answer and, for the judge, its pattern. `sepo sample` reads questions of pairs: those of the held-out rows are
    the right answer and the one of the misconception, which nothing is trained on.
    """
    draw = random.Random(seed)
    asked = distinct(prompts + validation + held_out, moves, draw)
    parts = {PROMPTS: asked[:prompts], VALIDATION: asked[prompts : prompts + validation], HELD_OUT: asked[-held_out:]}
    rows = {name: [row(text) for text in texts] for name, texts in parts.items()}
    known = set(asked)
    taught = [text for text in (world.question(moves, draw) for _ in range(sft)) if text not in known]
    rows[SFT] = [{"instruction": text, "output": world.sft_answer(text, draw)} for text in taught]
    single = {"columns": {"prompt": "instruction", "response": "output"}}
    pair = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "output", "rejected": "misconceived"}}
    kinds = {SFT: single, PROMPTS: single, VALIDATION: pair, HELD_OUT: pair}
    info = {name: {"file_name": f"{name}.json", **kind} for name, kind in kinds.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def distinct(count: int, moves: int, draw: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[world.question(moves, draw)] = None
    return list(found)


def row(text: str) -> dict[str, str]:
    return {
        "instruction": text,
        "output": world.right_answer(text),
        "misconceived": world.misconceived(text),
        EXPECTED: world.pattern(text),
    }
