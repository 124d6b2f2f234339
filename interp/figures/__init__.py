"""Figures: what analyses draw, and small still pictures of them."""
