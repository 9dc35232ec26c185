"""Attention: ``attend()`` and ``Mask``, over xformers on CUDA and PyTorch elsewhere."""
