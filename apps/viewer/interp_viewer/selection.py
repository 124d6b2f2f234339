"""What is selected: the page's address, and nowhere else.

Every page reads it, every click writes it once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlencode

import streamlit as st

_NUMBERS = ("ex", "layer", "token", "head", "src", "tgt")
_TEXTS = ("run", "model", "task", "label", "of", "over", "node", "edge", "cmp")
_LONGEST = 300


@dataclass(frozen=True)
class Selection:
    """A run, a model and a task, a prompt, and what is selected of it.

    Prompt `ex`, `layer`, `token`, `head`, source `src` and target `tgt` count from 0.

    `label` names a set of parameters; `of` is what the page shows of an analysis, `over` "all"
    where that is a mean over prompts; `cmp` the run or prompt that it is compared with, `thr` and
    `k` numbers that pages use. `bad` says what in the address was no such thing.
    """

    run: str = ""
    model: str = ""
    task: str = ""
    ex: int | None = None
    layer: int | None = None
    token: int | None = None
    head: int | None = None
    src: int | None = None
    tgt: int | None = None
    label: str = ""
    of: str = ""
    over: str = ""
    node: str = ""
    edge: str = ""
    cmp: str = ""
    thr: float | None = None
    k: int | None = None
    bad: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(cls, params: Mapping[str, str]) -> "Selection":
        """Return what an address selects; what cannot be read is left out and named in `bad`."""
        texts = [name for name in _TEXTS if name in params]
        values: dict[str, Any] = {name: params[name][:_LONGEST] for name in texts}
        bad = []
        for name in (*_NUMBERS, "k", "thr"):
            if name in params:
                try:
                    values[name] = float(params[name]) if name == "thr" else int(params[name])
                except ValueError:
                    bad.append(
                        f"{name}={params[name][:40]} in the address is not a number; ignored"
                    )
        for name in ("thr", "head", "src", "tgt"):
            if name in values and not 0 <= values[name] < 1e6:
                value = values.pop(name)
                bad.append(f"{name}={value} in the address is below 0; ignored")
        return cls(**values, bad=tuple(bad))

    def params(self) -> dict[str, str]:
        """Return the address's parameters; what is not selected is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "bad"}
        return {
            name: f"{value:g}" if name == "thr" else str(value)
            for name, value in values.items()
            if value not in ("", None)
        }

    def moved(self, **changes: Any) -> "Selection":
        """Return a selection with changes, without what belongs to another run, model or prompt."""
        belongs = {
            "run": {"model": "", "task": "", "ex": None, "cmp": "", "node": "", "edge": ""},
            "model": {"ex": None, "node": "", "edge": ""},
            "task": {"ex": None, "node": "", "edge": ""},
        }
        dropped: dict[str, Any] = {}
        for name, values in belongs.items():
            if name in changes and changes[name] != getattr(self, name):
                dropped |= values
        return replace(self, bad=(), **(dropped | changes))

    def within(self, limits: Mapping[str, int]) -> "Selection":
        """Return a selection without numbers beyond `limits`, which says how many of each exist."""
        bad, dropped = list(self.bad), {}
        for name, limit in limits.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value < limit:
                bad.append(f"{name}={value} in the address; there is 0 to {limit - 1}; ignored")
                dropped[name] = None
        return replace(self, **dropped, bad=tuple(bad))

    def query(self) -> str:
        """Return the part of the address after the question mark."""
        return urlencode(self.params())


def select(selection: Selection) -> None:
    """Write the address in one step, so that Back undoes it in one."""
    st.query_params.from_dict(selection.params())
