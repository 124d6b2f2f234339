"""An analysis's own figure, findings and table, also of those that have no page of their own."""

import streamlit as st

from interp_viewer.about import about
from interp_viewer.lines import stored
from interp_viewer.selected import Selected
from interp_viewer.text import plain
from interp_viewer.widgets import finished_cell

TITLE = "Other analyses"
_MOST_ROWS = 2000


def page(here: Selected) -> None:
    """Draw the analysis's figure, findings and table."""
    cell = finished_cell(here)
    if cell is None:
        return
    info = here.info(cell)
    st.markdown(plain(info.get("question", "")))
    stored(here, cell)
    about(here, cell.analysis)
    frame = here.run.frame(cell)
    if len(frame) > _MOST_ROWS:
        st.caption(
            f"The first {_MOST_ROWS:,} of {len(frame):,} rows; the page “Data” saves them all."
        )
    st.dataframe(frame.head(_MOST_ROWS), hide_index=True, height=400)
    with st.expander("Parameters"):
        st.json(info.get("parameters", {}))
