"""Token scores as pure functions of per-token log-probabilities.

Every function takes [B, T] tensors in nats, all of the same shape, and returns a detached tensor of that shape in
float32 or wider: scores select tokens, no gradient flows through them. Positions are scored independently, so values in
the padding affect no other position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from sepo.errors import SepoError


def oracle_scores(oracle_logps: Tensor, base_logps: Tensor) -> Tensor:
    """Score tokens by log pi_oracle - log pi_base, the token reward that the oracle learned by DPO.

    Source: SePO (arXiv 2408.13518) Eq. 24.

    Args:
        oracle_logps: [B, T] per-token log-probabilities of the DPO-trained oracle, in nats.
        base_logps: [B, T] those of the model it was trained from.

    Returns:
        [B, T] scores in nats. High in a chosen response and low in a rejected one marks a key token.

    Raises:
        SepoError: if the shapes differ.
    """
    return _difference(oracle_logps, base_logps, "oracle_logps", "base_logps")


def alignment_scores(policy_logps: Tensor, ref_logps: Tensor, *, chosen: bool) -> Tensor:
    """Score tokens by the distance of the policy to the reference: log pi_ref - log pi_theta, negated for rejected.

    Source: Selective-DPO Eq. 6. With this sign the highest scores are selected on both sides.

    Args:
        policy_logps: [B, T] per-token log-probabilities of the policy, in nats; detached here.
        ref_logps: [B, T] those of the reference.
        chosen: True for chosen responses, False (sign flipped) for rejected ones.

    Returns:
        [B, T] scores in nats, detached.

    Raises:
        SepoError: if the shapes differ.
    """
    if chosen:
        return _difference(ref_logps, policy_logps, "ref_logps", "policy_logps")
    return _difference(policy_logps, ref_logps, "policy_logps", "ref_logps")


def contrastive_rewards(better_logps: Tensor, worse_logps: Tensor) -> Tensor:
    """Reward tokens by sigmoid(log pi(y_t | x_better) - log pi(y_t | x_worse)) - 0.5.

    Source: T-REG (arXiv 2412.02685) Eq. 3. With the log-probabilities of an oracle and its base in place of those under
    the two prompts this is the paper's "DPO reward" variant, squashed into the same range (the paper has no formula).

    Args:
        better_logps: [B, T] per-token log-probabilities under the prompt that requests a better response, in nats.
        worse_logps: [B, T] those under the prompt that requests a worse one.

    Returns:
        [B, T] token rewards in [-0.5, 0.5], detached.

    Raises:
        SepoError: if the shapes differ.
    """
    return torch.sigmoid(_difference(better_logps, worse_logps, "better_logps", "worse_logps")) - 0.5


def uncertainty_scores(policy_logps: Tensor) -> Tensor:
    """Score tokens by the policy's surprise, -log pi_theta, on both sides.

    The ranking is that of ConfPO (arXiv 2506.08712): tokens of low confidence have large gradients and carry the
    preference. A fixed share (the selector's) is kept, so that runs with this scorer are comparable with others at the
    same ratio. ConfPO's own threshold is the mean of the probabilities, see ``probability_scores``.

    Args:
        policy_logps: [B, T] per-token log-probabilities of the policy, in nats; detached here.

    Returns:
        [B, T] scores in nats, at least 0, detached. High scores are selected in chosen and rejected responses.
    """
    return -policy_logps.detach().to(_wide(policy_logps))


def probability_scores(policy_logps: Tensor) -> Tensor:
    """Score tokens by the negative of their probability, -pi_theta, on both sides.

    Source: ConfPO (arXiv 2506.08712), which optimizes the tokens whose probability is below the arithmetic mean of
    the probabilities of their response: those with a score above the mean of the scores (rule ``mean``).

    Args:
        policy_logps: [B, T] per-token log-probabilities of the policy, in nats; detached here.

    Returns:
        [B, T] scores in [-1, 0], detached, float64. High scores are selected in chosen and rejected responses.
    """
    return -policy_logps.detach().double().exp()


def random_scores(token_ids: Sequence[int], *, start: int, seed: int, side: str) -> Tensor:
    """Score a response's tokens at random, as an ablation of every other scorer.

    The numbers are a hash (SHAKE-256) of the seed, the side and the row's tokens. They do not depend on the batch, the
    order of rows, the process, the device or the version of a random number generator.

    Args:
        token_ids: prompt and response.
        start: index of the first token to score.
        seed: the seed of the run.
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
            f"{first_name} has shape {list(first.shape)} and {second_name} {list(second.shape)}, expected equal "
            "shapes: pass the log-probabilities of the same tokens."
        )
    return first.detach().to(_wide(first)) - second.detach().to(_wide(second))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
