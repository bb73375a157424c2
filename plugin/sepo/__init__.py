"""Token-selective preference optimization for LLaMA-Factory, Axolotl and plain transformers.

Importing this package is cheap and does not import torch. The parts are ``sepo.objectives`` (losses),
``sepo.selection`` (token selection), ``sepo.forward`` (log-probabilities), ``sepo.training`` (the training step),
``sepo.judges`` (whether a response is right) and ``sepo.hosts`` (LLaMA-Factory, Axolotl).
"""

__version__ = "0.1.0"
