"""Rewards of the tokens of sampled responses (RTO, arXiv 2404.18922, Section 4.2).

For the token y_t of a response of T tokens,

    r_t = clip(beta1 (log pi_dpo(y_t) - log pi_ref(y_t))) - beta2 (log pi(y_t) - log pi_ref(y_t)) + [t = T] r(x, y)

with the model pi_dpo that DPO trained, the sampling policy pi and the judge's reward r(x, y) of the response. The first
term and the second are *dense* rewards: every token has one. The paper has no clip; its authors' code clips the first
term at 0.05, with beta1 = 0.05 and beta2 = 0.01.
"""

from __future__ import annotations

from torch import Tensor

from sepo.errors import SepoError


def dense_rewards(
    mask: Tensor,
    *,
    oracle_log_ratios: Tensor | None = None,
    beta1: float = 0.0,
    clip: float | None = None,
    policy_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    beta2: float = 0.0,
) -> Tensor:
    """Return the rewards of tokens from the oracle and from the divergence of the policy from its reference.

    Args:
        mask: [B, T] bool, True at response tokens.
        oracle_log_ratios: [B, T] log pi_dpo - log pi_ref of the oracle and its base in nats; needed if ``beta1`` is
            not 0.
        beta1: weight of the oracle's log-ratios.
        clip: largest absolute value of the oracle's term, after its weight; None for no limit.
        policy_logps: [B, T] log-probabilities of the sampling policy in nats; needed if ``beta2`` is not 0.
        ref_logps: [B, T] those of its reference.
        beta2: weight of the policy's log-ratios.

    Returns:
        [B, T] rewards, detached, exactly 0 outside the mask; float32, or float64 if an input is.

    Raises:
        SepoError: if an input is missing or not finite at a response token, with row and position.
    """
    parts = []
    if beta1:
        term = beta1 * _finite("oracle_log_ratios", oracle_log_ratios, mask)
        parts.append(term if clip is None else term.clamp(-clip, clip))
    if beta2:
        policy, reference = _finite("policy_logps", policy_logps, mask), _finite("ref_logps", ref_logps, mask)
        parts.append(-beta2 * (policy - reference))
    total = mask.new_zeros(mask.shape).float()
    for part in parts:
        total = total + part
    return total.masked_fill(~mask, 0.0)


def _finite(name: str, values: Tensor | None, mask: Tensor) -> Tensor:
    """Return values detached, in float32 or wider, and 0 outside the mask."""
    if values is None or values.shape != mask.shape:
        found = "missing" if values is None else f"of shape {list(values.shape)}"
        raise SepoError(f"{name} of the responses are {found}, expected one number for each of {list(mask.shape)}.")
    values = values.detach()
    values = (values if values.element_size() > 4 else values.float()).masked_fill(~mask, 0.0)
    unusable = ~values.isfinite()
    if bool(unusable.any()):
        row, position = (int(index) for index in unusable.nonzero()[0])
        raise SepoError(
            f"{name} is {float(values[row, position])} at token {position} of response {row}, expected a finite number."
        )
    return values
