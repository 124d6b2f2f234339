"""The prompt's tokens as one line of buttons, the same on every page."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

HTML = '<div class="strip" role="toolbar" aria-label="The prompt\'s tokens"></div>'
_MARKS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "Ġ": "·", "▁": "·", "Ċ": "↵"}


@lru_cache(maxsize=65_536)
def visible(token: str) -> str:
    """Return a token's text with white space that can be seen."""
    return "".join(_MARKS.get(letter, letter) for letter in token) or "∅"


@cache
def _component() -> Callable[..., Any]:
    here = Path(__file__).parent
    js, css = ((here / f"strip.{ending}").read_text(encoding="utf-8") for ending in ("js", "css"))
    return st.components.v2.component("interp_strip", html=HTML, js=js, css=css)


def strip(
    tokens: Sequence[str], *, key: str, selected: int | None, on_pick: Callable[[int], None]
) -> None:
    """Draw the tokens; `on_pick` is called with the index of the token that was picked."""

    def picked() -> None:
        pick = st.session_state[key].get("pick")
        if pick is not None:
            on_pick(int(pick))

    shown = [visible(token) for token in tokens]
    stamp = hashlib.blake2b("\0".join(shown).encode(), digest_size=8).hexdigest()
    _component()(
        key=key, data={"tokens": shown, "selected": selected, "stamp": stamp}, on_pick_change=picked
    )
