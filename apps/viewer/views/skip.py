from interp_viewer.screen import show
from interp_viewer.skip import page

show("skip", page)
