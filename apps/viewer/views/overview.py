from interp_viewer.overview import page
from interp_viewer.screen import show

show("overview", page)
