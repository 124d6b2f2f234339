"""What each head attends to: a map of all heads, and the pattern of the one that is selected."""

import numpy as np
import streamlit as st

from interp.errors import RunError
from interp.runs.folder import Cell
from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid, Values
from interp_viewer.pane import mirrors, picture, selected_cell
from interp_viewer.positions import token_axis
from interp_viewer.selected import Selected
from interp_viewer.strip import visible
from interp_viewer.text import number, plain
from interp_viewer.widgets import controls, mean_or_prompt, one_of, option

TITLE = "Heads"
COMPARED = ("head_patterns",)
# as the tensors "readings", "repeated" and "unrelated" hold them
READINGS = (
    "first token",
    "previous token",
    "itself",
    "same token earlier",
    "token after the same token",
    "punctuation",
    "subject, from the last token",
    "answer, from the last token",
    "entropy, nats",
    "distance, tokens",
)
COPIES = READINGS[1], READINGS[3], READINGS[4]
TWICE = "random tokens said twice"
_SHARES = READINGS[:8]
_TWICE = ", said twice"
_WORDS = ("kept.promoted", "kept.suppressed")
_KEPT = {"attention": "kept.pattern", "value-weighted": "kept.weighted"}


def choices(here: Selected) -> list[str]:
    """Return what heads were asked for: "TARGET", or "TARGET, said twice" on random tokens."""
    frame = here.run.frame(here.cell("head_patterns"))
    names = frame["target"].where(frame["text"] == "task", frame["target"] + _TWICE)
    return list(dict.fromkeys(names))


def grid(here: Selected, of: str) -> Grid:
    """Return a reading of every head [layer head]: of a prompt, or its mean."""
    names = choices(here)
    of = of if of in names else names[0]
    target = of.removesuffix(_TWICE)
    over = "mean over prompts" if here.is_over_all else f"prompt {here.ex}"
    rows: dict[str, Values] = {}
    if here.is_over_all:
        rows = _means(here, target, is_twice=target != of)
        values = rows["mean"]
    else:
        values = _of_prompt(here, target, is_twice=target != of)
    n_layers, n_heads = values.shape
    return Grid(
        f"{'Attention to: ' if target in _SHARES else ''}{of}; {over}",
        values,
        Axis.of("layer", n_layers, "layer"),
        Axis.of("head", n_heads, "head"),
        top=1.0 if target in _SHARES else None,
        missing="no query of this prompt has such a key",
        low=rows.get("low"),
        high=rows.get("high"),
        n=rows.get("n_prompts"),
    )


def _of_prompt(here: Selected, target: str, *, is_twice: bool) -> Values:
    measured = here.measured(here.cell("head_patterns"))
    if is_twice:
        values = measured.of_prompt("repeated", here.ex)[COPIES.index(target)]
    else:
        values = measured.of_prompt("readings", here.ex)[READINGS.index(target), 0]
    return values.astype(np.float32)


def _means(here: Selected, target: str, *, is_twice: bool) -> dict[str, Values]:
    frame = here.run.frame(here.cell("head_patterns"))
    frame = frame[
        (frame["target"] == target)
        & (frame["weighting"] == "attention")
        & ((frame["text"] == TWICE) == is_twice)
    ]
    return {
        column: frame.pivot(index="layer", columns="head", values=column).to_numpy(np.float32)
        for column in ("mean", "low", "high", "n_prompts")
    }


def page(here: Selected) -> None:
    """Draw the map of heads beside the selected head's pattern on the prompt."""
    cell = here.cell("head_patterns")
    with controls():
        of = option(here, "Attention to", choices(here))
        mean_or_prompt(here)
        weighting = one_of(here, "Weighting", {name: name for name in _KEPT}, field="node")
        mirrors(here, (heads := grid(here, of)), key="heads", width=110)
    left, right = st.columns([0.42, 0.58], gap="medium")
    with left:
        picture(here, heads, key="heads", below=40)
        _selected_value(here, heads)
    with right:
        _pattern(here, cell, heads, weighting)
    about(here, "head_patterns")


def _selected_value(here: Selected, heads: Grid) -> None:
    if (at := selected_cell(here, heads)) is not None:
        place, _, n = heads.rank(*at)
        value = number(float(heads.values[at]))
        st.caption(f"**L{at[0]}H{at[1]}**: {value}, rank {place} of {n} heads")


def _pattern(here: Selected, cell: Cell, heads: Grid, weighting: str) -> None:
    """Draw the selected head's pattern, at first that of the head with the largest value."""
    values = np.nan_to_num(heads.values, nan=-np.inf)
    row, col = selected_cell(here, heads) or np.unravel_index(values.argmax(), values.shape)
    layer, head = int(row), int(col)
    try:
        kept = _kept(here, cell, layer, head)
    except RunError as error:
        st.info(plain(error))
        return
    n = len(here.tokens)
    pattern = kept[_KEPT[weighting]][:n, :n].astype(np.float32) / 255
    pattern[~np.tri(n, dtype=bool)] = np.nan
    queries = token_axis(here, n)
    keys = Axis("attends to", queries.labels, queries.values, ("src",))
    queries = Axis("from token", queries.labels, queries.values, ("token",))
    title = f"L{layer}H{head}, prompt {here.ex}: {weighting} from each token (down) to others"
    how = {"is_upward": False, "top": 1.0, "missing": "later tokens are not seen"}
    picture(here, Grid(title, pattern, queries, keys, **how), key="pattern", below=40)
    most, least = (_words(here, kept[name]) for name in _WORDS)
    st.caption(
        f"At the last token, L{layer}H{head} makes most probable: {plain(most)};"
        f" least: {plain(least)}"
    )


def _words(here: Selected, ids: np.ndarray) -> str:
    vocabulary = here.run.vocabulary(here.model)
    return "  ".join(f"“{visible(vocabulary[i])}”" for i in ids.tolist() if i < len(vocabulary))


def _kept(here: Selected, cell: Cell, layer: int, head: int) -> dict[str, np.ndarray]:
    """Return what was kept of a head on this prompt; raise RunError, saying of which, if nothing.

    Only these numbers are read: [query key], and [top].
    """
    measured = here.measured(cell)
    is_kept = measured.all("kept").astype(bool)
    kept = [measured.number(row) for row in np.flatnonzero(is_kept)]
    if here.ex not in kept:
        there = ", ".join(map(str, kept)) or "none (kept=0, or longer than `longest` tokens)"
        raise RunError(f"the pattern of prompt {here.ex} was not kept; kept are prompts {there}")
    names = (*_KEPT.values(), *_WORDS)
    return {name: measured.of_kept(name, here.ex, layer, head) for name in names}
