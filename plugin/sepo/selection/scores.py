"""Token scores as pure functions of per-token log-probabilities.

Every function takes [B, T] tensors in nats, of any one shape, and returns a detached tensor of that shape in float32
or wider: a score says which token counts, no gradient flows through it. Positions are scored one by one, so whatever
stands in the padding stays there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from sepo.errors import SepoError


def oracle_scores(oracle_logps: Tensor, base_logps: Tensor) -> Tensor:
    """Score tokens by log pi_oracle - log pi_base, the token reward that DPO taught the oracle.

    Source: SePO (arXiv 2408.13518) Eq. 24.

    Args:
        oracle_logps: [B, T] per-token log-probabilities of the DPO-trained oracle, in nats.
        base_logps: [B, T] those of the model it was trained from.

    Returns:
        [B, T] scores in nats. High in a chosen response and low in a rejected one marks a key token.

    Raises:
        SepoError: the shapes differ.
    """
    return _difference(oracle_logps, base_logps, "oracle_logps", "base_logps")


def alignment_scores(policy_logps: Tensor, ref_logps: Tensor, *, chosen: bool) -> Tensor:
    """Score tokens by how far the live policy is from the reference: log pi_ref - log pi_theta, negated for rejected.

    Source: Selective-DPO Eq. 6. The sign makes the highest scores the wanted ones on both sides.

    Args:
        policy_logps: [B, T] per-token log-probabilities of the policy, in nats; detached here.
        ref_logps: [B, T] those of the reference.
        chosen: True for chosen responses, False (sign flipped) for rejected ones.

    Returns:
        [B, T] scores in nats, detached.

    Raises:
        SepoError: the shapes differ.
    """
    if chosen:
        return _difference(ref_logps, policy_logps, "ref_logps", "policy_logps")
    return _difference(policy_logps, ref_logps, "policy_logps", "ref_logps")


def contrastive_rewards(better_logps: Tensor, worse_logps: Tensor) -> Tensor:
    """Reward tokens by sigmoid(log pi(y_t | x_better) - log pi(y_t | x_worse)) - 0.5.

    Source: T-REG (arXiv 2412.02685) Eq. 3. With an oracle's and its base's log-probabilities instead of the two
    prompts' this is the paper's "DPO reward" variant, squashed into the same range (the paper prints no formula).

    Args:
        better_logps: [B, T] per-token log-probabilities under the prompt that asks for a better answer, in nats.
        worse_logps: [B, T] those under the prompt that asks for a worse one.

    Returns:
        [B, T] token rewards in [-0.5, 0.5], detached.

    Raises:
        SepoError: the shapes differ.
    """
    return torch.sigmoid(_difference(better_logps, worse_logps, "better_logps", "worse_logps")) - 0.5


def uncertainty_scores(policy_logps: Tensor) -> Tensor:
    """Score tokens by how little the live policy expects them: -log pi_theta, on both sides alike.

    Source: ConfPO (arXiv 2506.08712), which optimizes the tokens whose policy probability does not exceed the mean
    probability of their response: low confidence goes with a large gradient and marks what the preference turns on.
    We rank by the same probability and keep a fixed share (the selector's) in place of that threshold of its own for
    every response, so that a run with this scorer compares with the others at the same ratio.

    Args:
        policy_logps: [B, T] per-token log-probabilities of the policy, in nats; detached here.

    Returns:
        [B, T] scores in nats, at least 0, detached. High marks a wanted token in chosen and rejected responses.
    """
    return -policy_logps.detach().to(_wide(policy_logps))


def random_scores(token_ids: Sequence[int], *, start: int, seed: int, side: str) -> Tensor:
    """Score a response's tokens at random, the ablation of every other scorer.

    The numbers depend on the seed, the side and the row's own tokens, by a hash (SHAKE-256): on no batch, no order of
    rows, no process, no device and no version of a generator.

    Args:
        token_ids: prompt and response.
        start: index of the first token that is scored.
        seed: the run's.
        side: ``chosen`` or ``rejected``.

    Returns:
        [len(token_ids) - start] float32, uniform in [0, 1) on a grid of 2**-24.
    """
    text = f"{seed} {side} {start} {' '.join(map(str, token_ids))}"
    count = len(token_ids) - start
    if count <= 0:
        return torch.empty(0)
    digest = hashlib.shake_256(text.encode("ascii")).digest(3 * count)
    digits = torch.frombuffer(bytearray(digest), dtype=torch.uint8).view(count, 3).float()
    return digits @ torch.tensor([2.0**-8, 2.0**-16, 2.0**-24])


def _difference(first: Tensor, second: Tensor, first_name: str, second_name: str) -> Tensor:
    if first.shape != second.shape:
        raise SepoError(
            f"{first_name} has shape {list(first.shape)} and {second_name} {list(second.shape)}, expected one shape: "
            "pass the log-probabilities of the same tokens."
        )
    return first.detach().to(_wide(first)) - second.detach().to(_wide(second))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
