from interp_viewer.lens import page
from interp_viewer.screen import show

show("lens", page)
