"""Pins, hidden nodes and labels of a circuit, kept in the only file that is written here."""

from dataclasses import dataclass, field

import streamlit as st

from interp.errors import RunError
from interp.files.whole import read_json, write_json
from interp_viewer.guarded import inside, require_small
from interp_viewer.selected import Selected

FILE = "annotations.json"
_LONGEST = 80


@dataclass(frozen=True)
class Notes:
    """Nodes that are pinned or hidden, and names given to nodes."""

    pinned: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


def _key(here: Selected) -> str:
    return here.cell("circuit_discovery").path


def read(here: Selected) -> Notes:
    """Return the notes on this circuit; none, with a warning, if the file is damaged."""
    path = inside(here.run.root, here.run.folder / FILE)
    if not path.is_file():
        return Notes()
    try:
        kept = read_json(require_small(path)).get(_key(here), {})
        pinned, hidden = (tuple(map(str, kept.get(name, ()))) for name in ("pinned", "hidden"))
        return Notes(pinned, hidden, {str(k): str(v) for k, v in kept.get("labels", {}).items()})
    except (RunError, AttributeError, TypeError) as error:
        st.warning(f"Notes are not shown: {error}")
        return Notes()


def write(here: Selected, notes: Notes) -> None:
    """Save the notes on this circuit, next to those on other circuits."""
    path = inside(here.run.root, here.run.folder / FILE)
    known = read_json(path) if path.is_file() else {}
    mine = {"pinned": list(notes.pinned), "hidden": list(notes.hidden), "labels": notes.labels}
    write_json(path, known | {_key(here): mine})


def edit(here: Selected, notes: Notes, node: str) -> None:
    """Let a node be pinned, hidden and labelled."""
    pin, hide = st.columns(2)
    is_pinned = node in notes.pinned
    if pin.button("Unpin" if is_pinned else "Pin", width="stretch"):
        pinned = tuple(n for n in notes.pinned if n != node) if is_pinned else (*notes.pinned, node)
        write(here, Notes(pinned, notes.hidden, notes.labels))
        st.rerun()
    if hide.button("Hide", width="stretch"):
        write(here, Notes(notes.pinned, (*notes.hidden, node), notes.labels))
        here.select(node="")
        st.rerun()
    label = st.text_input(
        "Label", notes.labels.get(node, ""), max_chars=_LONGEST, key=f"label-{node}"
    )
    if label != notes.labels.get(node, ""):
        kept = {name: text for name, text in (notes.labels | {node: label}).items() if text}
        write(here, Notes(notes.pinned, notes.hidden, kept))
        st.rerun()
