from interp_viewer.screen import show
from interp_viewer.voids import page

show("voids", page)
