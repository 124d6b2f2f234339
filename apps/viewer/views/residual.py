from interp_viewer.residual import page
from interp_viewer.screen import show

show("residual", page)
