"""Every page, and the analyses that it shows."""

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

VIEWS = Path(__file__).parents[1] / "views"


@dataclass(frozen=True)
class Entry:
    """A page: its name in the address, its title, and the analyses of which it needs one."""

    name: str
    title: str
    analyses: tuple[str, ...] = ()

    @property
    def page(self) -> "st.Page":
        """Return Streamlit's page."""
        return st.Page(
            VIEWS / f"{self.name}.py",
            title=self.title,
            url_path=self.name,
            default=self.name == "runs",
        )


ENTRIES = (
    Entry("runs", "Runs"),
    Entry("overview", "Overview"),
    Entry("residual", "Residual contribution", ("residual_contribution",)),
    Entry("skip", "Layer skip", ("layer_skip",)),
    Entry("lens", "Logit lens", ("logit_lens",)),
    Entry("voids", "Voids", ("void_detection",)),
    Entry("circuit", "Circuit", ("circuit_discovery", "relevance_patching", "activation_patching")),
    Entry("backpatch", "Back-patching", ("back_patching",)),
    Entry("depthmap", "Depth map", ("depth_map",)),
    Entry("erasure", "Erasure and gradients", ("residual_erasure", "integrated_gradients")),
    Entry("analysis", "Other analyses"),
    Entry("compare", "Compare"),
    Entry("data", "Data"),
    Entry("live", "Live (loads a model)"),
)
BY_NAME = {entry.name: entry for entry in ENTRIES}
PAGE_OF = {analysis: entry.name for entry in ENTRIES for analysis in entry.analyses}
