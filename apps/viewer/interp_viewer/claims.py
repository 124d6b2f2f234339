"""Findings with the numbers that they rest on, drawn the same way on every page."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from interp.runs.evidence import evidence, findings_of
from interp_viewer.text import plain


def draw_findings(record: Mapping[str, Any]) -> None:
    """Draw a cell's findings: each claim, and below it its number, control and strongest rival."""
    for finding in findings_of(record):
        st.markdown(f"**{plain(finding['claim'])}**")
        for number in evidence(finding):
            st.caption(plain(number))
