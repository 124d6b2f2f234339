"""The viewer's parts: what is read from a run folder, what is selected, and how it is drawn; no torch but on the live page."""
