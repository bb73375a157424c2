"""Rarity: the score of a token is the rarity of its word in a list of word counts. Runs once, before training."""

import math
from collections.abc import Sequence

import torch

from sepo.objectives import RowTokens, StoredScorer

COUNTS = {"the": 50_000, "and": 30_000, "is": 20_000, "has": 8_000, "it": 15_000, "a": 25_000}


class Rarity:
    def __init__(self, device: torch.device) -> None:  # load a model here, if it needs one
        self.most = math.log(max(COUNTS.values()))

    def __call__(self, rows: Sequence[RowTokens]) -> list[list[float]]:
        return [[self.most - math.log(COUNTS.get(text.strip().lower(), 1)) for text in row.texts] for row in rows]


rarity = StoredScorer(load=Rarity, settings={"counts": 1}, rejected_largest=True)  # rare matters on both sides
