"""Figures: each from data that is made apart from it (`*_points`, then `*_figure`)."""
