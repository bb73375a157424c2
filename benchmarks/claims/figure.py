"""The figure of docs/evidence.md: right responses by learning rate, and by how good the credit is."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from claims.report import ALL_TOKENS, ANCHOR, CURVE, RANDOM_TOKENS

BY_RATE = (
    "SePO 30 %, known tokens", "SePO 30 %, oracle", RANDOM_TOKENS, ALL_TOKENS, "MinorDPO, all tokens", "SFT on chosen",
)  # fmt: skip
ANCHORED = tuple(f"{name}, {ANCHOR}" for name in ("SePO 30 %, oracle", RANDOM_TOKENS, ALL_TOKENS))


def draw(result: Mapping, path: Path) -> None:
    """Write the figure of a result of world_methods.py.

    Args:
        result: the content of the result file.
        path: the PNG file.
    """
    policies = result["policies"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, name in enumerate((*BY_RATE, *ANCHORED)):
        shares = policies[name]["validation"]
        values = [100 * share for share in shares.values()]
        line = "--" if name in ANCHORED else "-"
        left.plot([float(rate) for rate in shares], values, "osD^vPX*h"[number] + line, label=name, markersize=4)
    left.set_xscale("log")
    left.set_xlabel("learning rate")
    left.set_ylabel("right responses, validation questions, %")
    left.legend(fontsize=7)
    for end, marker in (("", "o-"), (f", {ANCHOR}", "s--")):
        shares = [100 * policies[name + end]["right"]["mean"] for name in CURVE]
        right.plot(list(CURVE.values()), shares, marker, label=f"SePO 30 %{end}")
        share = 100 * policies[ALL_TOKENS + end]["right"]["mean"]
        right.axhline(share, color="0.5", linestyle=marker[1:], label=ALL_TOKENS + end)
    right.set_xlabel("AUROC of the credit")
    right.set_ylabel("right responses, held-out questions, %")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=100)
