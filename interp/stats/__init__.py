"""Statistics: estimates with intervals, paired differences, agreement, alignment of curves."""
