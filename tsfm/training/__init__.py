"""Training: the Lightning task, optimisers, callbacks, validation and fine-tuning."""
