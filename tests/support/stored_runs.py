"""Stores and runs on disk for the tests that read them, written without a host."""

import json
import time
from pathlib import Path

import numpy as np

from sepo.score_store import AnswerText, RowText, ScoreStore
from sepo.text.token_texts import TokenTexts
from tests.support import tiny

SIDES = ("chosen", "rejected")
COLUMNS = ("chosen_scores", "rejected_scores")
SELECT = {"chosen_ratio": 0.3, "rejected_ratio": 0.3, "rule": "floor", "unit": "token", "scope": "response",
          "span_tokens": 3}  # fmt: skip


def table(rows: int = 9) -> list[dict]:
    """Return tokenized pairs in the host's columns, with scores of one decimal, so that some are tied."""
    words, draw, made = tiny.tokenizer(), np.random.default_rng(5), []
    for pair in tiny.pairs(rows):
        prompt = words.encode(pair["conversations"][0]["value"])
        row = {"prompt": pair["conversations"][0]["value"]}
        for side in SIDES:
            answer = [*words.encode(pair[side]["value"] + " Yes. 好。No 🕷!\nWhy"), words.eos_token_id]
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
            row[f"{side}_scores"] = draw.normal(size=len(answer)).round(1).astype(np.float32).tolist()
        made.append(row)
    return made


def texts_of(row: dict) -> RowText:
    texts = TokenTexts(tiny.tokenizer())
    answers = [[label for label in row[f"{side}_labels"] if label != -100] for side in SIDES]
    return RowText(row["prompt"], *(AnswerText(*texts.spelling_and_steps(ids)) for ids in answers))


def make_store(root: Path, rows: list[dict], *, texts: bool = True, shard_rows: int = 4, identity=None) -> ScoreStore:
    identity = identity or {"scorer": "oracle", "rows": "sha256:1f"}
    store = ScoreStore.open(root=root, identity=identity, rows=len(rows), columns=COLUMNS, shard_rows=shard_rows)
    store.fill(lambda start, stop: {name: [row[name] for row in rows[start:stop]] for name in COLUMNS})
    if texts:
        assert store.texts.leave(lambda: [[texts_of(row) for row in rows]])
    return store


def record_line(row: int | None, step: int, **changed) -> str:
    answer = {"tokens": ["a", "b", "c"], "scores": [0.5, None, -0.25], "selected": [0]}
    return json.dumps({"step": step, "row": row, "prompt": "q", "chosen": answer, "rejected": answer, **changed})


def make_run(folder: Path, store: Path | None, *, recorded=((3, 1), (0, 2)), **settings) -> Path:
    """Write a finished run of four steps."""
    folder.mkdir(parents=True)
    known = {
        "sepo": "0.1.0", "stage": "sepo", "objective": "sepo", "token_scorer": "oracle", "select": SELECT,
        "rejected_selects": "lowest", "token_rewards": None,
        "oracle": {"oracle": {"model": "saves/oracle", "adapters": ["a"], "quantization_bit": 4},
                   "base": {"model": "saves/base", "adapters": [], "quantization_bit": None}},
        "token_scores": {} if store is None else {"train": str(store), "eval": "/nowhere"}, **settings,
    }  # fmt: skip
    (folder / "sepo_settings.json").write_text(json.dumps(known))
    now = time.time()
    lines = [{"event": "begin", "step": 0, "total_steps": 4, "time": now}]
    lines += [
        {"event": "log", "step": n, "time": now + n, "loss": 1 / n, "rewards/margins": n / 8} for n in range(1, 5)
    ]
    lines += [{"event": "end", "step": 4, "time": now + 9}]
    (folder / "sepo_log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "_sepo_tokens.jsonl").write_text("".join(f"{record_line(*given)}\n" for given in recorded))
    (folder / "_sepo_recipe.json").write_text(json.dumps({"recipe": {"stage": "sepo"}, "versions": {"torch": "2.11"}}))
    state = {"log_history": [{"step": 1, "loss": 0.7, "epoch": 0.1}, {"step": 2, "loss": 0.6}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    host = [{"current_steps": 1, "total_steps": 4, "loss": 0.75, "lr": 1e-5, "elapsed_time": "0:00:01"}]
    (folder / "trainer_log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in host))
    return folder
