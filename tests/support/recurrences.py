"""Recurrences of layers with a state, token by token."""

import torch


def delta_rule(
    query, key, value, g, beta, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=True, **kwargs
):
    """The gated delta rule (arXiv 2412.06464, equation 10); tensors [R, T, H, ...] as of the layers' own functions."""
    if use_qk_l2norm_in_kernel:
        query, key = (each * (each.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for each in (query, key))
    state = initial_state
    if state is None:
        state = query.new_zeros(len(key), key.shape[2], key.shape[3], value.shape[3])
    outputs = []
    for t in range(key.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        held = (state * key[:, t, :, :, None]).sum(-2)
        state = state + key[:, t, :, :, None] * ((value[:, t] - held) * beta[:, t, :, None])[:, :, None]
        outputs.append((state * query[:, t, :, :, None]).sum(-2) / key.shape[3] ** 0.5)
    return torch.stack(outputs, 1), state if output_final_state else None
