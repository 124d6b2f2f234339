"""The viewer's parts: what is read, selected and drawn; only the live page needs torch."""
