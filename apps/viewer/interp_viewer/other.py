"""Any analysis, as it drew and tabled itself: also those that have no page of their own."""

from pathlib import PurePosixPath

import streamlit as st

from interp_viewer.lines import stored
from interp_viewer.screen import Here, option
from interp_viewer.text import plain

_MOST_ROWS = 2000


def page(here: Here) -> None:
    """Draw the analysis's figure, summary and table."""
    finished = {PurePosixPath(cell.path).name: cell for cell, info in here.cells.items() if info["status"] == "ok"}
    if not finished:
        st.info("No analysis of this model and task is finished.")
        return
    cell = finished[option(here, "Analysis", list(finished))]
    info = here.info(cell)
    st.markdown(f"**{plain(info.get('question', ''))}**")
    st.markdown(plain(info.get("summary", "")))
    stored(here, cell)
    frame = here.run.frame(cell)
    if len(frame) > _MOST_ROWS:
        st.caption(f"The first {_MOST_ROWS:,} of {len(frame):,} rows; the page “Data” saves them all.")
    st.dataframe(frame.head(_MOST_ROWS), hide_index=True, height=400)
    with st.expander("Parameters"):
        st.json(info.get("parameters", {}))
