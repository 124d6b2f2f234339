"""One question per file; every file is found by `interp list analyses`, runs, reports and the
viewer.
"""
