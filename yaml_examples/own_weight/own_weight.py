"""Ending: the last tokens of a response weigh 1, those before them less. For pairs whose difference is at the end."""

from dataclasses import dataclass

import torch

from sepo.objectives import Number, TokenWeight, WeighedTokens, WeightRule, Whole


@dataclass(frozen=True)
class Ending(TokenWeight):
    last: int
    rest: float

    def weights(self, tokens: WeighedTokens) -> torch.Tensor:
        lengths = tokens.mask.sum(dim=-1, keepdim=True)
        return torch.where(tokens.positions > lengths - self.last, 1.0, self.rest)


ending = WeightRule(Ending, {"last": Whole(64, low=1), "rest": Number(0.2, low=0, low_included=True)})
