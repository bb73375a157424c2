"""How far float32 results of the tiny models may be from each other where sums are taken in another order.

Processors, kernels, batches and numbers of threads add in different orders. A sum of n terms is then off by at most n
roundings of the sizes that are added; of numbers that are off themselves, about as many times their error again.
"""

import torch

ROUNDING = torch.finfo(torch.float32).eps
LOG_PROB = 64 * 16 * ROUNDING
"""Of a log-probability, 1.2e-4: the sums on the way have 64 terms, the width of the models, and it is above -16."""
SCORE = 2 * LOG_PROB
"""Of the difference of two."""


def of_sum(numbers) -> float:
    """Of the sum of float32 numbers."""
    return len(numbers) * ROUNDING * sum(map(abs, numbers))
