"""About: a response is right if its last number is within one percent of the expected one."""

import re
from typing import Any

from sepo.errors import SepoError
from sepo.judges import Judge

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def is_close(response: str, expected: float) -> bool:
    numbers = NUMBER.findall(response)
    return bool(numbers) and abs(float(numbers[-1]) - expected) <= 0.01 * abs(expected)


def read(value: Any) -> float:  # optional: checks the expected answer of every row before a model is loaded
    if not NUMBER.fullmatch(str(value)):
        raise SepoError(f"the expected answer is {value!r}, expected a number.")
    return float(value)


about = Judge(is_close, read)
