"""The registry of forecasters: model type -> class, of this package and of others.

The command line, ``tsfm weights convert``, the parameter counts and the tests of the contract use it. Another package
adds a model by an entry point of the group ``tsfm.models``, whose name is the model type and whose value is
``module:Class``.
"""

import importlib

from tsfm.models.base import Forecaster
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.plugins import entry_point_error, entry_points, load, warn_once

GROUP = "tsfm.models"
OWN = {
    "chronos-bolt": "tsfm.models.chronos_bolt:ChronosBolt",
    "chronos2": "tsfm.models.chronos2:Chronos2",
    "decoder": "tsfm.models.scaling_law.decoder:Decoder",
    "encoder": "tsfm.models.scaling_law.encoder:Encoder",
    "itransformer": "tsfm.models.itransformer:ITransformer",
    "moirai": "tsfm.models.moirai:Moirai",
    "moirai2": "tsfm.models.moirai2:Moirai2",
    "zeroshot-decoder": "tsfm.models.zeroshot.decoder:ZeroShotDecoder",
    "zeroshot-long": "tsfm.models.zeroshot.long_history:LongHistoryDecoder",
    "zeroshot-encoder": "tsfm.models.zeroshot.encoder:ZeroShotEncoder",
}
ADDED = {entry.name: entry for entry in entry_points(GROUP, OWN)}
# Model type in config.json -> module and class. A class is imported when it is first used.
MODELS = {**{name: entry.value for name, entry in ADDED.items()}, **OWN}


def model_class(model_type: str) -> type[Forecaster]:
    """The class of a model type.

    Raises:
        InputError: no such type (near names are listed), or the package that adds it cannot be imported.
    """
    if model_type not in MODELS:
        raise unknown_name("model type", model_type, MODELS)
    if model_type in OWN:
        module, name = OWN[model_type].split(":")
        return getattr(importlib.import_module(module), name)
    entry, what = ADDED[model_type], f"the model type {model_type}"
    kind = load(entry, what)
    if not (isinstance(kind, type) and issubclass(kind, Forecaster)):
        raise entry_point_error(entry, what, f"a {type(kind).__name__}, no Forecaster")
    return kind


def model_classes() -> dict[str, type[Forecaster]]:
    """Every model type that can be imported, with its class; the others are listed on standard error."""
    classes = {}
    for model_type in MODELS:
        try:
            classes[model_type] = model_class(model_type)
        except InputError as error:
            warn_once(str(error))
    return classes
