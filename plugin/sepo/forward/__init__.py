"""Log-probabilities and sums over the vocabulary, computed at needed positions only."""

from sepo.forward.chunked import default_chunk_tokens, token_log_probs, token_statistics
from sepo.forward.head import selected_log_probs
from sepo.forward.statistics import reference_log_probs, selected_statistics
from sepo.forward.vocabulary import ReferenceStates, TokenStatistics

__all__ = [
    "ReferenceStates",
    "TokenStatistics",
    "default_chunk_tokens",
    "reference_log_probs",
    "selected_log_probs",
    "selected_statistics",
    "token_log_probs",
    "token_statistics",
]
