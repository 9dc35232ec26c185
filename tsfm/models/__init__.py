"""Time-series models: one file each; no model imports another."""
