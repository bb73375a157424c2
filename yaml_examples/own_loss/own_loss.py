"""Focal DPO: DPO's loss times (1 - p)^focus, with the pair's own probability p, to focus training on wrong pairs."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from sepo.objectives import Flag, Link, Method, Number, Objective, ResponseReward, Stage


@dataclass(frozen=True)
class Focal(Link):
    focus: float

    def loss(self, h: torch.Tensor) -> torch.Tensor:
        return -logsigmoid(h) * torch.sigmoid(-h.detach()) ** self.focus

    def slope(self, h: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(-h.detach()) ** (self.focus + 1)


def build(*, beta: float, focus: float, mean: bool) -> Method:
    return Method("focal_dpo", ResponseReward(over_reference=True, average=mean, scale=beta), Focal(focus))


focal_dpo = Objective(
    build, {"beta": Number(0.1, low=0), "focus": Number(2, low=0, low_included=True), "mean": Flag(False)}
)
focal_mean = Stage("focal_dpo", keys={"focal_dpo_mean": True, "pref_beta": 2.0})  # lengths do not count
