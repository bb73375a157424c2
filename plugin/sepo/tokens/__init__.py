"""Which tokens count: their scores, their selection, and what keeps them on disk.

``scores`` and ``selection`` are pure functions of tensors (torch and the standard library only).
"""
