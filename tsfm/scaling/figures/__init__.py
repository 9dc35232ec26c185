"""Figures of the scaling report: the laws and their runs, and how far to trust them."""
