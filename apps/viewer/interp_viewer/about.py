"""What an analysis asks, what it found, how, and how that could mislead."""

import streamlit as st

from interp_viewer.claims import draw_findings
from interp_viewer.selected import Selected
from interp_viewer.text import plain


def question(here: Selected, analyses: tuple[str, ...]) -> None:
    """Draw what a page's first finished analysis asks."""
    finished = next((name for name in analyses if here.labels(name)), None)
    if finished is not None:
        with st.container(key="question"):
            st.markdown(plain(here.info(here.cell(finished)).get("question", "")))


def about(here: Selected, *analyses: str) -> None:
    """Draw, folded, what analyses found, how, and how they could mislead."""
    for analysis in analyses:
        if not here.labels(analysis):
            continue
        info = here.info(here.cell(analysis))
        with st.expander(f"**{plain(analysis)}**: what was found, how, and how it could mislead"):
            st.markdown(plain(info.get("question", "")))
            draw_findings(info)
            method = {"How": info.get("how"), "But": info.get("caveat")}
            st.markdown(
                "\n".join(f"- {word}: {plain(text)}" for word, text in method.items() if text)
            )
