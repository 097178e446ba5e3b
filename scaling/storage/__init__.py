"""Whole files, locks, outputs that may be replaced, temporary folders."""
