"""Scaling laws: from a table of runs to laws with intervals, a report, and a plan for a budget."""
