"""Measured tables: accuracy beside the published numbers, speed beside the peers."""
