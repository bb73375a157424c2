"""Pairs of token ids, batches of them, and the slow loss from full logits, for tests of the training step."""

import contextlib
import math
import random

import torch

from sepo.objectives import resolve_method
from sepo.training.collators import selecting_collator

GAMMA, CHOSEN_RATIO, REJECTED_RATIO = 1.7, 0.4, 0.25
SEPO = resolve_method("sepo", gamma=GAMMA, chosen_ratio=CHOSEN_RATIO, rejected_ratio=REJECTED_RATIO)


def make_pairs(count, seed=0):
    """Return pairs with prompts and responses of many lengths and a score for every response token."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [draw.randrange(3, 300) for _ in range(draw.randrange(1, 6))]
        pair = {}
        for side in ("chosen", "rejected"):
            response = [draw.randrange(3, 300) for _ in range(draw.randrange(1, 12))]
            pair[f"{side}_input_ids"] = prompt + response
            pair[f"{side}_labels"] = [-100] * len(prompt) + response
            pair[f"{side}_scores"] = [draw.gauss(0, 1) for _ in response]
        made.append(pair)
    return made


PAIRS = make_pairs(4)


def collate(pairs, method=SEPO, extra=0):
    """Collate like a host, with ``extra`` positions of additional padding."""

    def pad(rows):
        def padded(key, value):
            lists = [row[f"{side}_{key}"] for side in ("chosen", "rejected") for row in rows]
            width = max(map(len, lists)) + extra
            return torch.tensor([ids + [value] * (width - len(ids)) for ids in lists])

        labels = padded("labels", -100)
        real = padded("input_ids", -1) >= 0
        return {"input_ids": padded("input_ids", 0), "attention_mask": real.long(), "labels": labels}

    return selecting_collator(pad, method=method)(pairs) if method.needs_scores else pad(pairs)


def logsigmoid(x):
    return -torch.log1p(torch.exp(-x))


def slow_log_probs(model, ids, labels):
    """Compute the log-probability of every response token of one row from full logits."""
    log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [log_probs[t - 1, label] for t, label in enumerate(labels) if label != -100]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(model, loss, expected, tolerance=1e-11):
    """Assert equal losses and gradients of all parameters, relative to the largest gradient."""
    assert math.isclose(loss.item(), expected.item(), rel_tol=tolerance)
    result, target = gradients(model, loss), gradients(model, expected)
    largest = max(1.0, *(gradient.abs().max().item() for gradient in target.values()))
    torch.testing.assert_close(result, target, rtol=tolerance, atol=tolerance * largest)


def running(model):
    return lambda: contextlib.nullcontext(model)
