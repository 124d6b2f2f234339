"""Every page in the order of the menu: the files of `interp_viewer.pages`."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

import streamlit as st

from interp.runs.questions import declared_in_files
from interp.runs.viewing import ANY, page_of
from interp_viewer import pages

_FIRST, _LAST = ("runs", "overview"), ("analysis", "compare", "data", "live")
WITHOUT_RUN = ("runs", "live")


@dataclass(frozen=True)
class Entry:
    """A page: its name in the address, its module, and the analyses of which it needs one."""

    name: str
    module: ModuleType
    analyses: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return what the page is called."""
        title: str = self.module.TITLE
        return title

    @property
    def page(self) -> "st.Page":
        """Return Streamlit's page."""
        is_first = self.name == _FIRST[0]
        return st.Page(self.draw, title=self.title, url_path=self.name, default=is_first)

    def draw(self) -> None:
        """Draw the page."""
        from interp_viewer import screen  # which draws the menu

        body: Callable[..., None] = self.module.page
        if self.name in WITHOUT_RUN:
            body()
        else:
            screen.show(self.name, body)


@cache
def entries() -> dict[str, Entry]:
    """Return all pages by name; those of analyses stand in the order of their first one's rank."""
    ranked = sorted(declared_in_files().items(), key=lambda item: (item[1].rank, item[0]))
    of_page: dict[str, list[str]] = {}
    for analysis, each in ranked:
        of_page.setdefault(each.page, []).append(analysis)
    known = [module.name for module in pkgutil.iter_modules(pages.__path__)]
    between = [name for name in of_page if name in known and name not in (*_FIRST, *_LAST)]
    return {
        name: Entry(
            name,
            import_module(f"{pages.__name__}.{name}"),
            () if name in _LAST else tuple(of_page.get(name, ())),
        )
        for name in (*_FIRST, *between, *_LAST)
    }


def entry_of(analysis: str) -> Entry:
    """Return the page that shows an analysis."""
    return entries().get(page_of(analysis), entries()[ANY])
