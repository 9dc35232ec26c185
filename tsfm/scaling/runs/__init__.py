"""Grids of training runs: reading a grid, running it as a sweep, and the ledger of results."""
