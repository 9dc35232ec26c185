"""Pretraining corpora: built once, opened memory-mapped, sampled, augmented and packed."""
