"""The training step (model and batch in, loss and metrics out), the collators, and a trainer for bare transformers.

No host is imported here, and transformers only with ``PreferenceTrainer``.
"""

from typing import TYPE_CHECKING, Any

from sepo.training.collator import SELECTION, STEPS, SelectionCollator, StepCollator
from sepo.training.floats import REF_LOGPS, ReferenceCollator
from sepo.training.rewards import TOKEN_REWARDS, RewardCollator
from sepo.training.rows import PairCollator, add_steps, encode_pairs
from sepo.training.scoring import reward_rows, score_rows
from sepo.training.step import StepOutput, preference_step

if TYPE_CHECKING:
    from sepo.training.trainer import PreferenceTrainer

__all__ = [
    "REF_LOGPS",
    "SELECTION",
    "STEPS",
    "TOKEN_REWARDS",
    "PairCollator",
    "PreferenceTrainer",
    "ReferenceCollator",
    "RewardCollator",
    "SelectionCollator",
    "StepCollator",
    "StepOutput",
    "add_steps",
    "encode_pairs",
    "preference_step",
    "reward_rows",
    "score_rows",
]


def __getattr__(name: str) -> Any:
    if name == "PreferenceTrainer":
        from sepo.training.trainer import PreferenceTrainer

        return PreferenceTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
