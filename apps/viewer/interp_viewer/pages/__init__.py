"""The pages, one per file, each named as in the page's address.

Each has a `TITLE` and a function `page` that draws it. A page that can be compared between two runs
or prompts also has `COMPARED`, the analyses of which it needs one; `choices(here)`, what it can
show; and `grid(here, of)`, one of these. An analysis declares its page (`Analysis.page`). The
question of a page is that of the first of its analyses by rank, or of those in `ASKS`.
"""
