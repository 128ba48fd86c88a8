"""Whole folders: pairs of files, what is done to them, scores and a report."""
