"""Computations that several analyses share, named by what they compute."""
