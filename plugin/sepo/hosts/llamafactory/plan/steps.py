"""`sepo pipeline --dry-run`: the steps of a pipeline with their state and planned memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.console import print_table
from sepo.hosts.llamafactory.chain_pairs import PAIRS
from sepo.hosts.llamafactory.chain_steps import Step
from sepo.hosts.llamafactory.pipeline import checked_steps
from sepo.hosts.llamafactory.plan.pairs_report import pairs_peak_in_words
from sepo.hosts.llamafactory.plan.report import peak_in_words


def print_steps(recipe: Mapping[str, Any]) -> None:
    """Check the steps of a pipeline and print them; nothing is written.

    Args:
        recipe: keys and values, from ``read_pipeline``.

    Raises:
        SepoError: the recipe is invalid, or a finished step was run with other settings.
    """
    steps, finished = checked_steps(recipe)
    cutoff = {"cutoff_len": steps[-1].recipe.get("cutoff_len")}  # sampling reads none, but is planned for such prompts
    rows = [
        [step.title, "finished" if done else "to be run", _memory(step, cutoff), step.output]
        for step, done in zip(steps, finished, strict=True)
    ]
    print_table(f"{len(steps)} steps", ["step", "state", "memory", "directory"], rows, words=4)


def _memory(step: Step, cutoff: Mapping[str, Any]) -> str:
    return pairs_peak_in_words({**step.recipe, **cutoff}) if step.name == PAIRS else peak_in_words(step.recipe)
