"""The fields of ``eval.json``, one by one."""

from __future__ import annotations

from collections.abc import Mapping

SCHEMA_VERSION = 1
"""Of ``eval.json``. It changes when a key goes or means something else; new keys do not change it."""

_KL = "KL(policy || reference) over the full vocabulary at each response position, exact, in nats"

FIELDS: Mapping[str, str] = {
    "schema_version": "1. It changes when a key goes or means something else; new keys do not change it.",
    "sepo": "Version of this package.",
    "versions": "By package: version of what computed the figures.",
    "data.dataset": "The evaluated data set, as the recipe calls it.",
    "data.part": "eval: eval_dataset, or the rows that val_size keeps from training. train: all rows of dataset.",
    "data.pairs": "Pairs that were evaluated; those with an answer that cutoff_len left empty are not among them.",
    "data.template": "The recipe's template, or null.",
    "data.cutoff_len": "Most tokens of prompt and answer; answers are cut there as in training.",
    "settings.decoding": "greedy, or sampling: of the whole distribution at the temperature.",
    "settings.temperature": "0 for greedy.",
    "settings.max_new_tokens": "Most tokens of an answer, its end included.",
    "settings.seed": "Of samples, of the prompts that were drawn, and of the intervals.",
    "settings.batch_tokens": "Tokens per batch.",
    "settings.confidence": "Of the intervals (percentile bootstrap over pairs or answers).",
    "settings.resamples": "Drawn for each interval.",
    "reference": "The model that KL and reward are taken from: key (of the recipe, that names it), model, adapters and "
    "quantization_bit. Null where the recipe tells of none.",
    "prompts": "By name: heldout (of the evaluated pairs), alpaca_eval, arena_hard, arena_hard_2024, mt_bench; empty "
    "where nothing was asked.",
    "prompts.*.dataset": "Where the prompts are from.",
    "prompts.*.prompts": "How many prompts.",
    "prompts.*.answers": "How many answers: a prompt of two turns has two.",
    "policies.*.name": "The policy's name in the files for judges. By role: after is the evaluated policy, before the "
    "policy as training started; before is null unless it was asked for.",
    "policies.*.model": "model, adapters and quantization_bit, as the recipe has them.",
    "policies.*.dtype": "Of the model's weights.",
    "policies.*.preference.summed.accuracy": "Share of pairs whose chosen answer has the higher summed "
    "log-probability. Estimate.",
    "policies.*.preference.summed.margin": "Mean of chosen minus rejected, nats. Estimate.",
    "policies.*.preference.summed.ties": "Pairs with a margin of exactly 0; they count as wrong.",
    "policies.*.preference.length_normalized.accuracy": "The same by log-probability per token. Estimate.",
    "policies.*.preference.length_normalized.margin": "Nats per token. Estimate.",
    "policies.*.preference.length_normalized.ties": "As above.",
    "policies.*.preference.reward": "The same by summed log-ratio to the reference (DPO's reward divided by beta): "
    "accuracy, margin and ties; null without a reference.",
    "policies.*.logps.chosen": "Mean summed log-probability of a chosen answer, nats.",
    "policies.*.logps.rejected": "The same of a rejected one.",
    "policies.*.kl": f"{_KL}; by side, chosen and rejected; null without a reference.",
    "policies.*.kl.*.per_token": "Mean over all tokens of these answers, their end of turn included. Estimate.",
    "policies.*.kl.*.per_answer": "Mean over answers of the sum over their tokens. Estimate.",
    "policies.*.kl.*.tokens": "How many tokens.",
    "policies.*.generations": "By name of the prompts; empty where nothing was generated.",
    "policies.*.generations.*.answers": "How many answers.",
    "policies.*.generations.*.tokens": "Mean length in tokens, the end of turn left out. Estimate.",
    "policies.*.generations.*.median_tokens": "Median length.",
    "policies.*.generations.*.distinct": "distinct-1, -2, -3: different n-grams of all answers by all their n-grams; "
    "null where there is none. It falls with the amount of text.",
    "policies.*.generations.*.repeated": "2, 3, 4: share of an answer's n-grams that came before in it (seq-rep-n), "
    "mean over the answers that have an n-gram. Estimates; null where none has.",
    "policies.*.generations.*.truncated": "Share of answers that max_new_tokens cut off. Estimate.",
    "policies.*.generations.*.empty": "Answers without a token.",
    "policies.*.generations.*.kl": f"{_KL}, over the policy's own answers: per_token, per_answer and tokens; null "
    "without a reference. At temperature 1 per_answer estimates the KL of whole answers without bias.",
    "policies.*.seconds.load": "Loading the models.",
    "policies.*.seconds.heldout": "Scoring the pairs.",
    "policies.*.seconds.generations": "Writing answers and scoring them.",
    "change": "After minus before on the same pairs, by measure (summed, length_normalized): accuracy and margin, "
    "estimates. Null without before.",
}
"""Every field of ``eval.json``, by its path (``*``: any name). An estimate is {value, low, high}: a number and its
interval, whose ends are null where one row alone was there. A field that stands here without those below it has them in
its text."""
