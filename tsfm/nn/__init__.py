"""Layers, heads and scalers that several models are made of."""
