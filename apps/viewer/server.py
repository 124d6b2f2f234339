"""The viewer's server: Streamlit, whose pages know the address that they are served below.

Opened at a page's own address, Streamlit's front end looks for its server below that page first,
and every browser reports two missing files. It does not where the page names the server.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import streamlit as st
from interp_viewer.menu import entries
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

_INDEX = (Path(st.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
_NAMED = "<head><script>window.__streamlit = {BACKEND_BASE_URL: window.location.origin}</script>"
_PAGE = _INDEX.replace("<head>", _NAMED, 1)


async def page(_: Request) -> HTMLResponse:
    """Return the page that Streamlit serves everywhere, which names the server."""
    return HTMLResponse(_PAGE, headers={"Cache-Control": "no-cache"})


app = st.App(
    Path(__file__).parent / "app.py", routes=[Route(f"/{name}", page) for name in entries()]
)
