from interp_viewer.other import page
from interp_viewer.screen import show

show("analysis", page)
