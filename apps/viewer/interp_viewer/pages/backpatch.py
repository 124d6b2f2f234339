"""Whether late activations, run through early layers, repair the answer, against controls."""

from typing import Any

import numpy as np
import streamlit as st

from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid, Values
from interp_viewer.lines import stored
from interp_viewer.pane import pane, selected_cell
from interp_viewer.selected import Selected
from interp_viewer.widgets import controls, one_of, option

TITLE = "Back-patching"
COMPARED = ("back_patching",)
# kinds of pairs as tensors hold them, what they are called, and which pairs they are
KINDS = {
    "back": "back-patching",
    "forward": "forward (early to late)",
    "identity": "own output (identity)",
    "example": "another prompt's vector",
    "random": "random direction",
    "position": "random position",
    "rescaled": "back-patching at the target's norm",
}
STATISTICS = {
    "rate": "share of failures repaired",
    "kept": "share of right answers kept",
    "log_prob": "change of the answer's log-probability",
    "rank": "rank of the answer",
}


def choices(here: Selected) -> list[str]:
    """Return the available "KIND: STATISTIC", in words."""
    return list(_by_name(here))


def _by_name(here: Selected) -> dict[str, tuple[str, str]]:
    """Map what choices are called to the kind and the statistic that tables hold."""
    frame = here.run.frame(here.cell("back_patching"))
    kinds = set(frame.loc[frame["statistic"] == "pair", "kind"])
    return {
        f"{KINDS[kind]}: {STATISTICS[statistic]}": (kind, statistic)
        for kind in KINDS
        if kind in kinds
        for statistic in STATISTICS
    }


def grid(here: Selected, of: str) -> Grid:
    """Return a statistic over failures by pair [source target], in one group of prompts."""
    known = _by_name(here)
    of = of if of in known else next(iter(known))
    kind, statistic = known[of]
    frame = here.run.frame(here.cell("back_patching"))
    group = here.selection.over if here.selection.over in set(frame["group"]) else "all"
    rows = frame[
        (frame["statistic"] == "pair") & (frame["kind"] == kind) & (frame["group"] == group)
    ]
    n = here.run.n_layers(here.model) or int(rows["source"].max()) + 1
    columns = {name: _square(rows, name, n) for name in (statistic, "low", "high", "n_prompts")}
    is_rate = statistic == "rate"
    return Grid(
        f"{of} (prompts: {group})",
        columns[statistic],
        Axis.of("source layer (its output)", n, "src", "layer"),
        Axis.of("target layer (its output)", n, "tgt"),
        is_signed=statistic == "log_prob",
        top=1.0 if statistic in ("rate", "kept") else None,
        missing="not tried: only pairs of this kind are",
        low=columns["low"] if is_rate else None,
        high=columns["high"] if is_rate else None,
        n=columns["n_prompts"] if statistic != "kept" else None,
        **(_percents(columns[statistic]) if statistic in ("rate", "kept") and n <= 24 else {}),
    )


def _square(rows, column: str, n: int) -> Values:
    values = np.full((n, n), np.nan, np.float32)
    values[rows["source"].astype(int), rows["target"].astype(int)] = rows[column].astype(float)
    return values


def _percents(values: Values) -> dict[str, Any]:
    """Return what a grid writes into its cells: shares in per cent, nothing where there is none."""
    at = np.where(np.isnan(values), 101, np.round(100 * values)).astype(np.int32)
    return {"texts": (*map(str, range(101)), ""), "text_at": at}


def page(here: Selected) -> None:
    """Draw the grid, the rates with their controls, and the prompts that a layer pair changes."""
    cell = here.cell("back_patching")
    frame = here.run.frame(cell)
    groups = list(dict.fromkeys(frame["group"]))
    with controls():
        of = option(here, "Kind and statistic", choices(here))
        others = {group: group for group in groups if group != "all"}
        one_of(here, "Prompts", {"all": "all prompts"} | others, field="over")
    picture = grid(here, of)
    pane(here, picture, key="backpatch")
    about(here, "back_patching")
    group = here.selection.over if here.selection.over in groups else "all"
    _rates(frame[frame["group"] == group])
    kind = next(kind for kind, shown in KINDS.items() if of.startswith(f"{shown}:"))
    _examples(here, kind, selected_cell(here, picture))
    stored(here, cell)


def _rates(frame) -> None:
    """List the rates of any layer pair and of one fixed one, for the method and every control."""
    st.markdown(
        "**Any pair (an OR over many tries) and one fixed pair,"
        " chosen on one half and scored on the other**"
    )
    rows = frame[frame["statistic"].isin(["oracle", "fixed"])]
    columns = ["statistic", "kind", "tries", "source", "target", "rate", "low", "high", "n_prompts"]
    st.dataframe(rows[columns], hide_index=True)


def _examples(here: Selected, kind: str, pair: tuple[int, int] | None) -> None:
    """List what the selected pair does to prompts: repaired, newly broken, as before."""
    if pair is None:
        st.caption("Choose a source and a target to see which prompts that pair repairs or breaks.")
        return
    source, target = pair
    measured = here.measured(here.cell("back_patching"))
    name = "own" if kind in ("back", "forward", "identity") else kind
    if f"{name}.right" not in measured.names:
        return
    right, was = measured.at(f"{name}.right", source, target), measured.at("is_right")
    known = np.isfinite(right)
    if (right[known] < 0).all():
        st.caption(f"The pair {source} → {target} was not tried.")
        return
    became = np.where(
        right == 1,
        np.where(was == 1, "stays right", "repaired"),
        np.where(was == 1, "newly broken", "stays wrong"),
    )
    became[~known] = "left out"
    counts = {
        word: int((became == word).sum())
        for word in ("repaired", "newly broken", "stays right", "stays wrong")
    }
    st.markdown(
        f"**Source {source} → target {target}, all prompts:** "
        + ", ".join(f"{n} {word}" for word, n in counts.items())
    )
    chosen = [i for i, word in enumerate(became) if word in ("repaired", "newly broken")]
    prompts = [here.prompts[i] if i < len(here.prompts) else {} for i in chosen]
    st.dataframe(
        {
            "prompt": chosen,
            "what": [became[i] for i in chosen],
            "text": [prompt.get("text", "") for prompt in prompts],
            "answer": [prompt.get("answer", "") for prompt in prompts],
        },
        hide_index=True,
    )
