"""What the stream would predict before every layer, token by token."""

import numpy as np
import streamlit as st

from interp.errors import RunError
from interp.numerals import with_minus
from interp_viewer.about import about
from interp_viewer.grid import Axis, Grid
from interp_viewer.lines import lines
from interp_viewer.pane import pane
from interp_viewer.positions import token_axis
from interp_viewer.selected import Selected
from interp_viewer.strip import visible
from interp_viewer.widgets import controls, mean_or_prompt, option

TITLE = "Logit lens"
COMPARED = ("logit_lens",)
# as the tensor "readings" holds them: what they are called here, and in the table
READINGS = {
    "KL(lens‖final), nats": 0,
    "KL(final‖lens), nats": 1,
    "overlap of the most probable tokens": 2,
    "answer probability": 3,
    "answer rank": 4,
    "entropy, nats": 5,
    "margin of the first guess, nats": 6,
}
_SHARES = {"overlap of the most probable tokens", "answer probability"}


def choices(here: Selected) -> list[str]:
    """Return the readings; runs of earlier versions lack the last ones."""
    _, shape = here.measured(here.cell("logit_lens")).names["readings"]
    return list(READINGS)[: shape[-1]]


def _measure(here: Selected, of: str) -> str:
    """Return what the table calls a reading."""
    parameters = here.info(here.cell("logit_lens"))["parameters"]
    return f"top-{parameters['top_k']} overlap" if of.startswith("overlap") else of


def grid(here: Selected, of: str) -> Grid:
    """Return one reading [tap token] of a prompt, with the lens's first choices; or its mean."""
    of = of if of in READINGS else next(iter(READINGS))
    cell = here.cell("logit_lens")
    if of not in choices(here):
        raise RunError(f"{here.run.id} has no {of}: it was made by an earlier version")
    how = {"top": 1.0 if of in _SHARES else None}
    missing = "this prompt has no answer" if "answer" in of else "no prompt has this token"
    if here.is_over_all:
        return _over_prompts(here, of, missing=missing, **how)
    measured = here.measured(cell)
    values = measured.of_prompt("readings", here.ex)[..., READINGS[of]].astype(np.float32)
    if "answer" in of:
        values = np.where(values < 0, np.nan, values)
    texts, text_at = (), None
    if "top" in measured.names:
        vocabulary = here.run.vocabulary(here.model)
        firsts = measured.of_prompt("top", here.ex)[..., 0]
        ids, at = np.unique(firsts, return_inverse=True)
        texts = tuple(visible(vocabulary[i]) if i < len(vocabulary) else "" for i in ids.tolist())
        text_at = at.reshape(firsts.shape).astype(np.int32)
    return Grid(
        f"{of}, prompt {here.ex}" + ("; in the cells: the lens's first choice" if texts else ""),
        values,
        _taps(len(values)),
        token_axis(here, values.shape[1]),
        missing=missing,
        texts=texts,
        text_at=text_at,
        **how,
    )


def _taps(n: int) -> Axis:
    """Return the places where the stream is read: before every layer, and after the last."""
    return Axis.of("before layer", n, "layer", labels=(*map(str, range(n - 1)), "end"))


def _over_prompts(here: Selected, of: str, *, missing: str, **how: object) -> Grid:
    frame = here.run.frame(here.cell("logit_lens"))
    rows = frame[(frame["measure"] == _measure(here, of)) & frame["position"].notna()]
    values = rows.pivot(index="layer", columns="position", values="mean")
    counts = rows.pivot(index="layer", columns="position", values="n_prompts")
    offsets = [int(offset) for offset in values.columns]
    last = len(here.tokens) - 1 if here.tokens else 0
    cols = Axis(
        "position (−1: the last token)",
        tuple(with_minus(str(offset)) for offset in offsets),
        tuple(last + o - max(offsets) for o in offsets),
        ("token",),
    )
    n = counts.to_numpy(np.float32)
    return Grid(
        f"{of}, mean over prompts",
        values.to_numpy(np.float32),
        _taps(len(values)),
        cols,
        n=n,
        missing=missing,
        **how,
    )


def page(here: Selected) -> None:
    """Draw the curves over depth, the grid, and the selected token layer by layer."""
    cell = here.cell("logit_lens")
    with controls():
        of = option(here, "Reading", choices(here))
        mean_or_prompt(here)
    measured, i = here.measured(cell), READINGS[of]
    at_cell = None if here.is_over_all else lambda row, col: measured.at("readings", row, col, i)
    pane(here, grid(here, of), key="lens", at_cell=at_cell)
    about(here, "logit_lens")
    frame = here.run.frame(cell)
    curve = frame[(frame["measure"] == _measure(here, of)) & frame["position"].isna()]
    if len(curve):
        layers = curve["layer"].astype(int)
        lines(
            here,
            curve.assign(layer=layers, line="mean over prompts", panel=curve["measure"]),
            title="Mean over prompts and tokens (of the answer: at the last token)",
            key="lens-lines",
        )
    _token(here)


def _token(here: Selected) -> None:
    """List what the lens says at the selected token, layer by layer."""
    token, measured = here.selection.token, here.measured(here.cell("logit_lens"))
    if token is None:
        return
    readings = measured.of_prompt("readings", here.ex)[:, token]
    rows = dict(zip(READINGS, readings.T, strict=False))
    if "top" in measured.names:
        vocabulary, best = (
            here.run.vocabulary(here.model),
            measured.of_prompt("top", here.ex)[:, token],
        )
        first_choices = [
            " ".join(visible(vocabulary[i]) for i in row if i < len(vocabulary))
            for row in best.tolist()
        ]
        rows = {"most probable tokens": first_choices, **rows}
    st.markdown("**The selected token, layer by layer**")
    st.dataframe({"before layer": list(_taps(len(readings)).labels)} | rows, hide_index=True)
