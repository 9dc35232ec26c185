"""Scaling laws: their forms, fits, intervals and tests."""
