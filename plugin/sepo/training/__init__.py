"""The training step (model and batch in, loss and metrics out) and the collator; no host is imported here."""

from sepo.training.collator import SELECTION, STEPS, SelectionCollator, StepCollator
from sepo.training.floats import REF_LOGPS, ReferenceCollator
from sepo.training.rewards import TOKEN_REWARDS, RewardCollator
from sepo.training.step import StepOutput, preference_step

__all__ = [
    "REF_LOGPS",
    "SELECTION",
    "STEPS",
    "TOKEN_REWARDS",
    "ReferenceCollator",
    "RewardCollator",
    "SelectionCollator",
    "StepCollator",
    "StepOutput",
    "preference_step",
]
