"""Batches of windows: splits, gathering, loaders that resume, the Lightning data module."""
