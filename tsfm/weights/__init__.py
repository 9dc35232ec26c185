"""Pretrained weights: what there is, getting it, checking it, converting it, and cards.

``tensors`` reads weight files without ever running what is in them; ``registry`` knows the models by name; ``folders``
checks model folders and their checksums; ``hub`` and ``pull`` fetch; ``convert`` takes published checkpoints over;
``cards`` writes the README.md of a released model.
"""
