"""Pretrained weights: models by name, downloads, mirrors, checks, conversion of published checkpoints, model cards.

``tensors`` reads weight files without executing anything in them, ``shapes`` compares them with a config; ``registry``
lists the models by name; ``folders`` checks model folders and their checksums; ``hub`` and ``download`` fetch models;
``conversion`` converts published checkpoints; ``pretrained`` saves and loads models of ours; ``cards`` writes the
README.md of a released model.
"""

from typing import TYPE_CHECKING

from tsfm_data.lazy import lazy_exports

if TYPE_CHECKING:
    from tsfm.weights.cards import card, keep_scores
    from tsfm.weights.conversion import Options, convert
    from tsfm.weights.download import mirror, pull
    from tsfm.weights.folders import CHECKSUMS, CLASSIFIER, ENCODER, digest, read_checksums, verify
    from tsfm.weights.image_cards import keep_recipe
    from tsfm.weights.pretrained import calibrate, from_plain, load, load_named, save
    from tsfm.weights.registry import default, default_image, image_folder, is_image_model, local_folder, released
    from tsfm.weights.shapes import check_shapes, limited_construction
    from tsfm.weights.tensors import check_file, layout, read_safetensors, read_tensors

__all__ = [
    "CHECKSUMS",
    "CLASSIFIER",
    "ENCODER",
    "Options",
    "calibrate",
    "card",
    "check_file",
    "check_shapes",
    "convert",
    "default",
    "default_image",
    "digest",
    "from_plain",
    "image_folder",
    "is_image_model",
    "keep_recipe",
    "keep_scores",
    "layout",
    "limited_construction",
    "load",
    "load_named",
    "local_folder",
    "mirror",
    "pull",
    "read_checksums",
    "read_safetensors",
    "read_tensors",
    "released",
    "save",
    "verify",
]
__getattr__ = lazy_exports(__name__, __file__)
