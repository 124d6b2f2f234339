"""An analysis's own figure, findings and table, also of those that have no page of their own."""

import streamlit as st

from interp_viewer.claims import draw_findings
from interp_viewer.lines import stored
from interp_viewer.selected import Selected
from interp_viewer.text import plain
from interp_viewer.widgets import finished_cell

TITLE = "Other analyses"
_MOST_ROWS = 2000


def page(here: Selected) -> None:
    """Draw the analysis's figure, summary and table."""
    cell = finished_cell(here)
    if cell is None:
        return
    info = here.info(cell)
    st.markdown(f"**{plain(info.get('question', ''))}**")
    draw_findings(info)
    stored(here, cell)
    frame = here.run.frame(cell)
    if len(frame) > _MOST_ROWS:
        st.caption(
            f"The first {_MOST_ROWS:,} of {len(frame):,} rows; the page “Data” saves them all."
        )
    st.dataframe(frame.head(_MOST_ROWS), hide_index=True, height=400)
    with st.expander("Parameters"):
        st.json(info.get("parameters", {}))
