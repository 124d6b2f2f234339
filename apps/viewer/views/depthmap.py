from interp_viewer.depthmap import page
from interp_viewer.screen import show

show("depthmap", page)
