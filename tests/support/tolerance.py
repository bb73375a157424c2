"""Tolerances between float32 results of the tiny models whose sums are computed in different orders.

The order depends on processors, kernels, batches and numbers of threads. The error of a sum of n terms is then at most
n roundings of the size of its terms, plus about n times the error of the terms themselves.
"""

import torch

ROUNDING = torch.finfo(torch.float32).eps
LOG_PROB = 64 * 16 * ROUNDING
"""Tolerance of a log-probability, 1.2e-4: its sums have 64 terms, the width of the models, and it is above -16."""
SCORE = 2 * LOG_PROB
"""Tolerance of the difference of two log-probabilities."""


def of_sum(numbers) -> float:
    """Return the tolerance of the sum of float32 numbers."""
    return len(numbers) * ROUNDING * sum(map(abs, numbers))
