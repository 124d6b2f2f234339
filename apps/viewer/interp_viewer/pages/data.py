"""Where a picture's numbers come from, and how to load them."""

from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import streamlit as st

from interp.errors import RunError
from interp.runs.folder import Cell
from interp_viewer.selected import Selected
from interp_viewer.text import plain
from interp_viewer.widgets import finished_cell

TITLE = "Data"
_MOST_ROWS = 2000


def page(here: Selected) -> None:
    """Draw the tensors of the selected prompt, the table, the record and a snippet."""
    cell = finished_cell(here)
    if cell is None:
        return
    for draw in (_tensors, _table, _record):
        try:
            draw(here, cell)
        except RunError as error:
            st.error(plain(error))
    st.subheader("In Python")
    where = [here.model, here.task, PurePosixPath(cell.path).name]
    st.code(
        "import interp\n\nresult ="
        f" interp.open_run({str(here.run.folder)!r}){where}\nresult.to_frame()\nresult.plot()",
        language=None,
    )


def _tensors(here: Selected, cell: Cell) -> None:
    st.subheader("Tensors")
    measured = here.measured(cell)
    st.caption(
        f"{len(measured.files)} files, {measured.n_prompts} prompts;"
        f" those of prompt {here.ex} are shown."
    )
    rows = []
    for name, (dtype, shape) in measured.names.items():
        values = np.asarray(measured.of_prompt(name, here.ex), np.float64)
        finite = values[np.isfinite(values)]
        about = (
            {"smallest": finite.min(), "largest": finite.max()}
            if finite.size
            else {"smallest": np.nan, "largest": np.nan}
        )
        of_one = " × ".join(map(str, shape[1:])) or "one number"
        rows.append(
            {
                "tensor": name,
                "type": dtype,
                "of a prompt": of_one,
                **about,
                "not finite": int(values.size - finite.size),
            }
        )
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def _table(here: Selected, cell: Cell) -> None:
    st.subheader("Table")
    frame = here.run.frame(cell)
    st.caption(f"{len(frame):,} rows; the first {min(_MOST_ROWS, len(frame)):,} are shown.")
    st.dataframe(frame.head(_MOST_ROWS), hide_index=True, height=300)
    name = PurePosixPath(cell.path).name
    left, right = st.columns(2)
    left.download_button(
        "Save as CSV", lambda: frame.to_csv(index=False).encode(), f"{name}.csv", "text/csv"
    )
    right.download_button(
        "Save as Parquet", lambda: frame.to_parquet(index=False), f"{name}.parquet"
    )


def _record(here: Selected, cell: Cell) -> None:
    st.subheader("Record")
    st.json(here.run.result(cell), expanded=False)
