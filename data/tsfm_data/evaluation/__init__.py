"""Metrics, protocols, baselines, and scores of forecasts."""
