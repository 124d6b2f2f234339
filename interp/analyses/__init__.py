"""Analyses, one question each; commands, runs, reports and the viewer find them here."""
