from interp_viewer.circuit import page
from interp_viewer.screen import show

show("circuit", page)
