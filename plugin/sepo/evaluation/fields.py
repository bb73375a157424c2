"""Documentation of the fields of ``eval.json``."""

from __future__ import annotations

from collections.abc import Mapping

SCHEMA_VERSION = 1
"""Schema version of ``eval.json``. It changes if a key is removed or changes its meaning, not if keys are added."""

_KL = "KL(policy || reference) over the full vocabulary at each response position, exact, in nats"

FIELDS: Mapping[str, str] = {
    "schema_version": "1. It changes if a key is removed or changes its meaning, not if keys are added.",
    "sepo": "Version of sepo.",
    "versions": "Versions of the packages that computed the results, by package.",
    "data.dataset": "Name of the evaluated data set in the recipe.",
    "data.part": "eval: eval_dataset, or the rows that val_size splits off. train: all rows of dataset.",
    "data.pairs": "Number of evaluated pairs, without those that cutoff_len leaves with an empty response.",
    "data.template": "Template of the recipe, or null.",
    "data.cutoff_len": "Maximum tokens of prompt and response; responses are truncated as in training.",
    "settings.decoding": "greedy, or sampling from the full distribution at the temperature.",
    "settings.temperature": "Sampling temperature; 0 for greedy.",
    "settings.max_new_tokens": "Maximum tokens of an answer, its end of turn included.",
    "settings.seed": "Seed of the samples, of the drawn prompts and of the intervals.",
    "settings.batch_tokens": "Tokens per batch.",
    "settings.confidence": "Confidence level of the intervals (percentile bootstrap over pairs or answers; Wilson's "
    "for the shares of a judge).",
    "settings.resamples": "Number of resamples for each interval.",
    "settings.judge": "The judge of the answers to held-out prompts: name, options, and column, in which the data set "
    "has the expected answers. Null without --judge.",
    "reference": "The reference of KL and reward: key (the recipe key that names it), model, adapters and "
    "quantization_bit. Null if the recipe has no reference.",
    "prompts": "By name: heldout (prompts of the evaluated pairs), alpaca_eval, arena_hard, arena_hard_2024, mt_bench; "
    "empty if no answers were generated.",
    "prompts.*.dataset": "Source of the prompts.",
    "prompts.*.prompts": "Number of prompts.",
    "prompts.*.answers": "Number of answers; a prompt with two turns has two.",
    "policies.*.name": "Name of the policy in the files for judges. By role: after is the evaluated policy, before the "
    "policy at the start of training; before is null without --before.",
    "policies.*.model": "model, adapters and quantization_bit of the recipe.",
    "policies.*.dtype": "Data type of the model's weights.",
    "policies.*.preference.summed.accuracy": "Share of pairs whose chosen response has the higher summed "
    "log-probability. Estimate.",
    "policies.*.preference.summed.margin": "Mean of chosen minus rejected, in nats. Estimate.",
    "policies.*.preference.summed.ties": "Number of pairs with a margin of exactly 0; they count as wrong.",
    "policies.*.preference.length_normalized.accuracy": "The same by log-probability per token. Estimate.",
    "policies.*.preference.length_normalized.margin": "In nats per token. Estimate.",
    "policies.*.preference.length_normalized.ties": "As above.",
    "policies.*.preference.reward": "The same by summed log-ratio to the reference (DPO's reward divided by beta): "
    "accuracy, margin and ties; null without a reference.",
    "policies.*.logps.chosen": "Mean summed log-probability of a chosen response, in nats.",
    "policies.*.logps.rejected": "The same for rejected responses.",
    "policies.*.kl": f"{_KL}; by side, chosen and rejected; null without a reference.",
    "policies.*.kl.*.per_token": "Mean over all tokens of these responses, their end of turn included. Estimate.",
    "policies.*.kl.*.per_answer": "Mean over responses of the sum over their tokens. Estimate.",
    "policies.*.kl.*.tokens": "Number of tokens.",
    "policies.*.generations": "By name of the prompts; empty if no answers were generated.",
    "policies.*.generations.*.answers": "Number of answers.",
    "policies.*.generations.*.tokens": "Mean length in tokens, without the end of turn. Estimate.",
    "policies.*.generations.*.median_tokens": "Median length in tokens.",
    "policies.*.generations.*.distinct": "distinct-1, -2, -3: share of distinct n-grams among all n-grams of all "
    "answers; null if there is none. It decreases with the amount of text.",
    "policies.*.generations.*.repeated": "2, 3, 4: share of an answer's n-grams that occur earlier in it (seq-rep-n), "
    "mean over the answers that have an n-gram. Estimates; null if none has.",
    "policies.*.generations.*.truncated": "Share of answers truncated by max_new_tokens. Estimate.",
    "policies.*.generations.*.empty": "Number of answers without a token.",
    "policies.*.generations.*.kl": f"{_KL}, over the generated answers: per_token, per_answer and tokens; null "
    "without a reference. At temperature 1, per_answer is an unbiased estimate of the KL of whole answers.",
    "policies.*.generations.*.correct": "Verdicts of the judge on the answers to held-out prompts. judged: number of "
    "answers to prompts with an expected answer; without_expected: number of the others, which no share includes; "
    "right: share with the right value; finished: share that ended with an end of turn; right_and_finished: share with "
    "both (estimates, with intervals for a single row, too; null if none was judged); verdicts: by prompt, id (number "
    "of the row), right (null without an expected answer) and finished. Null without a judge.",
    "policies.*.seconds.load": "Time to load the models.",
    "policies.*.seconds.heldout": "Time to score the pairs.",
    "policies.*.seconds.generations": "Time to generate and score answers.",
    "change": "After minus before on the same pairs, by measure (summed, length_normalized): accuracy and margin, "
    "estimates; correct: on the same prompts, right, finished and right_and_finished, null without a judge. Null "
    "without before.",
}
"""Every field of ``eval.json``, by path (``*``: any name). An estimate is {value, low, high}: a number and its
interval, whose ends are null with a single row. Fields without entries for their children describe them in their
text."""
