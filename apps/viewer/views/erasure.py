from interp_viewer.erasure import page
from interp_viewer.screen import show

show("erasure", page)
