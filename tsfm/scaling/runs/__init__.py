"""Grids of training runs: what is trained, the sweep, and the ledger of results."""
