"""Log-probabilities, computed only where they are needed."""

from sepo.forward.chunked import default_chunk_tokens, token_log_probs
from sepo.forward.head import selected_log_probs

__all__ = ["default_chunk_tokens", "selected_log_probs", "token_log_probs"]
