"""Statistics: estimates with their intervals, paired differences, agreement and alignment of
curves.
"""
