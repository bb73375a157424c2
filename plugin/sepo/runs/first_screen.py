"""First screen of a run, in its log: before the data is prepared, and again when training begins."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback

from sepo.recipe.rto import RtoSettings
from sepo.recipe.settings import RunSettings

logger = logging.getLogger(__name__)


def log_first_screen(settings: RunSettings | RtoSettings) -> None:
    """Log what the recipe was resolved to."""
    logger.info("\n%s", settings.first_screen)


class FirstScreen(TrainerCallback):
    """Trainer callback that logs the first screen again, which models and data have pushed far up.

    Args:
        settings: the run's settings.
    """

    def __init__(self, settings: RunSettings | RtoSettings) -> None:
        self._settings = settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the screen in the first process."""
        if state.is_world_process_zero:
            log_first_screen(self._settings)
