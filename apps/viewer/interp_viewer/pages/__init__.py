"""The pages, one a file, which is named as the page's address.

Each has a `TITLE` and a function `page` that draws it. What can be compared between two runs or
prompts also has `COMPARED`, the analyses of which one is needed, `choices(here)`, what there is to
see of them, and `grid(here, of)`, one of these. Which analyses a page shows, these declare
themselves (`Analysis.page`).
"""
