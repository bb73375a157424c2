"""The training step (model and batch in, loss and metrics out), the collators, and a trainer for plain transformers.

No host is imported here. Names are imported lazily with their dependencies: reading a run's files needs neither torch
nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepo.training.encoded_pairs import PairCollator, add_steps, encode_pairs
    from sepo.training.float_columns import REF_LOGPS, ReferenceCollator
    from sepo.training.reward_columns import TOKEN_REWARDS, RewardCollator
    from sepo.training.row_scores import reward_rows, score_rows
    from sepo.training.selection_columns import (
        CANDIDATES,
        SELECTION,
        STEPS,
        CandidateCollator,
        SelectionCollator,
        StepCollator,
    )
    from sepo.training.step import StepOutput, preference_step
    from sepo.training.trainer import PreferenceTrainer

_MODULES = {
    "selection_columns": ("CANDIDATES", "SELECTION", "STEPS", "CandidateCollator", "SelectionCollator", "StepCollator"),
    "float_columns": ("REF_LOGPS", "ReferenceCollator"),
    "reward_columns": ("TOKEN_REWARDS", "RewardCollator"),
    "encoded_pairs": ("PairCollator", "add_steps", "encode_pairs"),
    "row_scores": ("reward_rows", "score_rows"),
    "step": ("StepOutput", "preference_step"),
    "trainer": ("PreferenceTrainer",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CANDIDATES",
    "REF_LOGPS",
    "SELECTION",
    "STEPS",
    "TOKEN_REWARDS",
    "CandidateCollator",
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
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
