from interp_viewer.data import page
from interp_viewer.screen import show

show("data", page)
