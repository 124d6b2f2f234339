from interp_viewer.compare import page
from interp_viewer.screen import show

show("compare", page)
