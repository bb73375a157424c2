"""Token-selective preference optimization for the fine-tuning stacks that teams already run.

Importing this package is cheap and imports no torch: the parts live in ``sepo.objectives`` (losses),
``sepo.selection`` (which tokens count), ``sepo.forward`` (log-probabilities), ``sepo.training``
(the step) and ``sepo.hosts`` (LLaMA-Factory).
"""

__version__ = "0.1.0"
