"""Prompts with judged responses, as `sepo pairs` makes pairs from them."""

from sepo.evaluation.benchmarks import Question
from sepo.evaluation.prompts import Prompt
from sepo.pairs.pairing import JudgedResponse, best_and_worst
from sepo.pairs.records import JudgedPrompt


def prompt(index, *turns, system="", tools="", expected=None):
    messages = tuple({"role": role, "content": content} for role, content in turns or [("user", f"q{index}")])
    return Prompt(Question(index, (messages[-1]["content"],), {}), messages, system, tools, expected)


def judged(asked, *responses):
    made = [JudgedResponse(text, finished, reward, tokens) for text, finished, reward, tokens in responses]
    return JudgedPrompt(asked, made, best_and_worst(made))
