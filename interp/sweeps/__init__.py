"""Computations that several analyses share: functions, named by what they compute."""
