from interp_viewer.backpatch import page
from interp_viewer.screen import show

show("backpatch", page)
