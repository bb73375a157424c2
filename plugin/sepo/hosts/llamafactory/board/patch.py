"""Registration of sepo's stages in `llamafactory.webui`. See ../../PATCHES.md for the reason for each patch."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import inspect
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.llamafactory.board.command import shown, started, without_off
from sepo.hosts.llamafactory.board.keys import Memory, with_keys_of
from sepo.hosts.llamafactory.board.texts import EXTRA_ARGUMENTS, LABELS
from sepo.hosts.llamafactory.facts import SUPPORTED
from sepo.recipe.stage_names import available_stages

_ELEMENTS = ("training_stage", "extra_args", "extra_tab")
"""Elements of the board's training tab that are needed to fill in the keys of a stage."""

_WIDTH = 640
"""Width of the box for extra arguments in pixels, so that a line of JSON is not wrapped; the box gets its own row."""
_LINES = 3
"""Minimum height of the box in lines: a configuration that is loaded is a single line."""


def board_gaps() -> list[str]:
    """Return what the registration relies on and the host's board lacks; empty if the board is supported."""
    try:
        return list(_gaps())
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # a module is gone, or a name is no function
        return [str(error)]


def filling_gaps() -> list[str]:
    """Build the board's page, and return which elements its training tab lacks, so that no keys are filled in."""
    from llamafactory.webui import interface

    tabs: list[dict[str, Any]] = []
    host = interface.create_train_tab

    def recorded(engine: Any) -> dict[str, Any]:
        tabs.append(host(engine))
        return tabs[-1]

    async def build() -> None:  # without a running loop gradio opens several and leaves them open
        interface.create_ui()

    interface.create_train_tab = recorded
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # the board makes directories
            asyncio.run(build())
    finally:
        interface.create_train_tab = host
    return [_lacks(absent) for tab in tabs if (absent := _absent(tab))]


def _absent(elements: Mapping[str, Any]) -> list[str]:
    return [name for name in _ELEMENTS if name not in elements]


def _lacks(names: Sequence[str]) -> str:
    return f"its training tab has no {', '.join(names)}"


def _gaps() -> Iterator[str]:
    from llamafactory.extras import constants
    from llamafactory.webui import common, control, interface, locales, runner
    from llamafactory.webui.components import train

    for module in (control, runner, train):
        if getattr(module, "TRAINING_STAGES", None) is not constants.TRAINING_STAGES:
            yield f"{module.__name__} does not list the stages of extras.constants.TRAINING_STAGES"
    if constants.TRAINING_STAGES.get("DPO") != "dpo":
        yield "extras.constants.TRAINING_STAGES has no DPO"
    if getattr(control, "STAGES_USE_PAIR_DATA", None) is not constants.STAGES_USE_PAIR_DATA:
        yield "webui.control does not read extras.constants.STAGES_USE_PAIR_DATA"
    if not all("info" in texts for texts in locales.LOCALES.get("extra_args", {"": {}}).values()):
        yield "webui.locales.LOCALES has no help for extra_args"
    for module, name, parameters in (
        (common, "_clean_cmd", ["args"]),
        (runner, "gen_cmd", ["args"]),
        (interface, "create_train_tab", ["engine"]),
    ):
        found = getattr(module, name, None)
        if found is None or list(inspect.signature(found).parameters) != parameters:
            yield f"{module.__name__} has no {name}({', '.join(parameters)})"
    if getattr(runner, "Popen", None) not in (subprocess.Popen, started):
        yield "webui.runner does not start a run by subprocess.Popen"


def register(interface: ModuleType) -> None:
    """List sepo's stages in the board, and make it preview and start their runs. Idempotent.

    An unsupported board is left unchanged, and a line is printed.

    Args:
        interface: ``llamafactory.webui.interface``, before its ``create_ui`` is called.
    """
    if getattr(interface, "_sepo_registered", False):
        return
    gaps = board_gaps()
    if gaps:
        message = f"this LLaMA Board does not list sepo's stages: {gaps[0]}; use {SUPPORTED}."
        print(f"sepo: {message}", file=sys.stderr)
        return
    from llamafactory.webui import common, runner

    _list_stages()
    host_clean, host_gen = common._clean_cmd, runner.gen_cmd

    def clean_cmd(args: dict[str, Any]) -> dict[str, Any]:
        cleaned = host_clean(args)
        return without_off(args, cleaned) if args.get("stage") in available_stages() else cleaned

    def gen_cmd(args: dict[str, Any]) -> str:
        return shown(clean_cmd(args)) if args.get("stage") in available_stages() else host_gen(args)

    common._clean_cmd = clean_cmd
    runner.gen_cmd = gen_cmd
    runner.Popen = started
    interface.create_train_tab = _filling(interface.create_train_tab)  # type: ignore[attr-defined]
    interface._sepo_registered = True  # type: ignore[attr-defined]


def _list_stages() -> None:
    """Add sepo's stages after the host's DPO, mark them as pairwise, and extend the help of the extra arguments."""
    from llamafactory.extras.constants import STAGES_USE_PAIR_DATA, TRAINING_STAGES
    from llamafactory.webui.locales import LOCALES

    labels: dict[str, str] = {}
    for name in available_stages():
        label = LABELS.get(name, name)
        while label in TRAINING_STAGES or label in labels:
            label += " (registered)"
        labels[label] = name
    in_order = []
    for item in TRAINING_STAGES.items():
        in_order += [item, *(labels.items() if item[1] == "dpo" else ())]
    TRAINING_STAGES.clear()  # updated in place: other modules hold this dictionary
    TRAINING_STAGES.update(in_order)
    STAGES_USE_PAIR_DATA.update(labels.values())
    for language, texts in LOCALES["extra_args"].items():
        texts["info"] += " " + EXTRA_ARGUMENTS.get(language, EXTRA_ARGUMENTS["en"])


def _filling(create: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Wrap the host's training tab: selecting a stage writes its keys into the box for extra arguments."""

    @functools.wraps(create)
    def create_train_tab(engine: Any) -> dict[str, Any]:
        import gradio as gr

        elements = create(engine)
        if absent := _absent(elements):
            print(f"sepo: this LLaMA Board does not fill in the keys of a stage: {_lacks(absent)}.", file=sys.stderr)
            return elements
        stage, box, tab = (elements[name] for name in _ELEMENTS)
        box.min_width, box.lines = _WIDTH, _LINES
        memory = gr.State(Memory())
        # `input`, not `change`: a configuration that is loaded has its own text
        stage.input(_fill, [stage, box, memory], [box, tab, memory], queue=False)
        return elements

    return create_train_tab


def _fill(label: str, text: str, memory: Memory) -> tuple[Any, Any, Any]:
    import gradio as gr
    from llamafactory.extras.constants import TRAINING_STAGES

    stage = TRAINING_STAGES[label]
    try:
        text, memory = with_keys_of(stage, text, memory)
    except SepoError as error:
        gr.Warning(html.escape(str(error)))
        return gr.skip(), gr.skip(), gr.skip()
    tab = gr.Accordion(open=True) if stage in available_stages() else gr.skip()
    return gr.Textbox(value=text, lines=max(_LINES, text.count("\n") + 1)), tab, memory
