"""Any analysis, as it drew and tabled itself: also those that have no page of their own."""

import streamlit as st

from interp_viewer.lines import stored
from interp_viewer.screen import Here, finished_cell
from interp_viewer.text import plain

_MOST_ROWS = 2000


def page(here: Here) -> None:
    """Draw the analysis's figure, summary and table."""
    cell = finished_cell(here)
    if cell is None:
        return
    info = here.info(cell)
    st.markdown(f"**{plain(info.get('question', ''))}**")
    st.markdown(plain(info.get("summary", "")))
    stored(here, cell)
    frame = here.run.frame(cell)
    if len(frame) > _MOST_ROWS:
        st.caption(
            f"The first {_MOST_ROWS:,} of {len(frame):,} rows; the page “Data” saves them all."
        )
    st.dataframe(frame.head(_MOST_ROWS), hide_index=True, height=400)
    with st.expander("Parameters"):
        st.json(info.get("parameters", {}))
