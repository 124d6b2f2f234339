from interp_viewer.runs import page

page()
