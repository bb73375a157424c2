"""Which tokens count: their scores, their selection, and what keeps them on disk.

``scores``, ``selection``, ``units`` (tokens, spans, steps), ``scopes`` (response, pair) and ``threshold`` (data set)
decide from numbers, ``steps`` and ``spans`` from text: pure functions (torch and the standard library only).
"""
