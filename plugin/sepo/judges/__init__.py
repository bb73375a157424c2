"""Judges: whether a generated response has the expected answer of its row.

``find_judge`` returns a built-in judge (``exact``, ``contains``, ``regex``, ``math``) or one that another package
registers in the entry-point group ``sepo.judges``: a ``Judge``, or a plain function that takes the response and the
expected answer.

>>> find_judge("exact", ignore_case=True)("  Paris ", "paris")
True
>>> find_judge("contains")("It has 8 legs.", {"required": "8", "forbidden": ["wings", "tail"]})
True
"""

from sepo.judges.judge import Judge, is_absent
from sepo.judges.registry import available_judges, find_judge

__all__ = ["Judge", "available_judges", "find_judge", "is_absent"]
