"""The pages, one per file, each named as in the page's address.

Each has a `TITLE` and a function `page` that draws it. A page that can be compared between two runs
or prompts also has `COMPARED`, the analyses of which it needs one; `choices(here)`, what it can
show; and `grid(here, of)`, one of these. An analysis declares its page (`Analysis.page`); `ASKS` are
those of a page, the one whose question stands above it first, where that is not the order of their
ranks.
"""
