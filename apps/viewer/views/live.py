from interp_viewer.live import page

page()
