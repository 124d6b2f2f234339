"""The viewer: `interp view RUNS_DIR` starts it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import streamlit as st
from interp_viewer.menu import entries

# a name as icon would be asked for on the network; the number is the width of the links beside
st.set_page_config(page_title="interp", layout="wide", initial_sidebar_state=220)
st.navigation([entry.page for entry in entries().values()], position="hidden").run()
