"""Forecasting with a model: the Python interface, tables of forecasts, adapters, export."""
