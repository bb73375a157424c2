"""`sepo score` in each of its processes: a run of a stage that stops before the policy is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from sepo.credit.in_run import report_scores
from sepo.hosts.llamafactory.recipe import refuse_without_scoring, settings_of
from sepo.hosts.llamafactory.workflow import prepared_data
from sepo.runs.first_screen import log_first_screen
from sepo.score_store import ScoreStore
from sepo.score_store.summary import summarize
from sepo.score_store.tables import print_summary

_WHAT = {
    "token_scores": "token scores",
    "token_reward_scores": "token rewards",
    "reference_scores": "log-probabilities of the reference",
    "registered_scores": "token scores",
}


def score(arguments: Any) -> None:
    """Score a recipe's training and evaluation rows, and print summaries of the score stores.

    Args:
        arguments: the host's five parsed objects, with the run's settings attached.

    Raises:
        SepoError: the recipe scores nothing, its data or models are invalid, or a store cannot be written.
    """
    model_args, data_args, training_args, finetuning_args, _ = arguments
    settings = settings_of(finetuning_args)
    refuse_without_scoring(settings)
    assert settings is not None
    log_first_screen(settings)
    data = prepared_data(settings, model_args=model_args, data_args=data_args, training_args=training_args)
    if training_args.process_index == 0:
        for what, stores in data.stores.items():
            for name, path in stores.items():
                print_summary(summarize(ScoreStore.at(Path(path))), title=f"{_WHAT[what]} of {name}")
                print(f"store: {path}", flush=True)
        report_scores(data.datasets, settings.method, marked=data.marked, scored=data.scored)
    if dist.is_initialized():
        dist.destroy_process_group()
