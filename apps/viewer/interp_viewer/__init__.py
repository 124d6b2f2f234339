"""The viewer's parts: what is read from a run folder, what is selected, how it is drawn; only the
live page needs torch.
"""
