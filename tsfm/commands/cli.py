"""The command ``tsfm``: a table of names. What a name needs is imported when it is called, so that help is quick."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import tsfm
from tsfm_data.errors import InputError, unknown_name

# name -> where its function is, and the line that help shows. A name of two words is a command in a group.
COMMANDS = {
    "forecast": ("tsfm.commands.forecast:forecast", "forecast past the end of your series"),
    "evaluate": ("tsfm.commands.evaluate:evaluate", "score a model on held-out windows of a data set or your file"),
    "finetune": ("tsfm.commands.finetune:finetune", "adapt a model to your series, never to the worse"),
    "export": ("tsfm.commands.export:export", "a model as ONNX or torch.export, checked"),
    "fit": ("tsfm.commands.train:train", "train a model from YAML (Lightning CLI)"),
    "validate": ("tsfm.commands.train:train", "validation error of a checkpoint (Lightning CLI)"),
    "test": ("tsfm.commands.train:train", "test error of a checkpoint (Lightning CLI)"),
    "predict": ("tsfm.commands.train:train", "forecast past the end of a config's data (Lightning CLI)"),
    "configs list": ("tsfm.commands.configs:list_", "the configs that ship, by name"),
    "configs show": ("tsfm.commands.configs:show", "print a config"),
    "configs copy": ("tsfm.commands.configs:copy", "a config as a file of your own"),
    "data list": ("tsfm.commands.data:list_", "the data sets of the catalogue"),
    "data pull": ("tsfm.commands.data:pull", "fetch a data set, verified"),
    "data inspect": ("tsfm.commands.data:inspect", "what is understood of your file"),
    "data build": ("tsfm.commands.data_build:build", "make a pretraining corpus from a list of sources"),
    "data verify": ("tsfm.commands.data_build:verify", "compare a corpus with its digests"),
    "data overlap": ("tsfm.commands.data_build:overlap", "which evaluation series a corpus has seen"),
    "data gallery": ("tsfm.commands.data_gallery:gallery", "a picture of the synthetic series beside real ones"),
    "scaling sweep": ("tsfm.commands.scaling:sweep", "train a grid of models into a ledger"),
    "scaling counts": ("tsfm.commands.scaling:counts", "parameters and FLOPs, and where 6 N D is wrong"),
    "scaling fit": ("tsfm.commands.scaling:fit", "scaling laws with intervals from a table of runs"),
    "scaling plan": ("tsfm.commands.scaling:plan", "size, data and loss for a budget, from a law"),
    "scaling selftest": ("tsfm.commands.scaling:selftest", "reproduce published scaling laws"),
    "image evaluate": ("tsfm.commands.image:evaluate", "accuracy, calibration and robustness of an image model"),
    "image predict": ("tsfm.commands.image:predict", "class probabilities of images"),
    "image explain": ("tsfm.commands.image:explain", "draw where an image model looks"),
    "image finetune": ("tsfm.commands.image_finetune:finetune", "adapt an image model to your images"),
    "weights list": ("tsfm.commands.weights:list_", "the models that have a name, ours and published ones"),
    "weights pull": ("tsfm.commands.weights:pull", "fetch a model, verified"),
    "weights mirror": ("tsfm.commands.weights:mirror", "write a model for machines without network"),
    "weights verify": ("tsfm.commands.weights:verify", "check a model folder or a mirror"),
    "weights convert": ("tsfm.commands.weights:convert", "make a published checkpoint a model folder"),
    "weights card": ("tsfm.commands.weights:card", "write a model's card from what is recorded of it"),
    "demo": ("tsfm.commands.demo:demo", "train on real series that ship, and write a report page"),
    "doctor": ("tsfm.commands.doctor:doctor", "which kernels run here, and what is wrong with the installation"),
}
INTERRUPTED = "interrupted: nothing half-written is left"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 when its work is done, 2 with one line on standard error for a user's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end_with(lambda: dispatch(words))


def end_with(work: Callable[[], int]) -> NoReturn:
    """Do some work and exit with its status; whatever goes wrong that is no defect of ours is one line and status 2."""
    try:
        sys.exit(work())
    except KeyboardInterrupt:
        fail(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: not an error of ours
        sys.exit(0)
    except InputError as error:
        fail(str(error))
    except OSError as error:
        name = error.filename2 or error.filename  # the second is the file that was to appear
        where = f" ({name})" if name else ""
        fail(
            f"expected a file or folder that can be read and written, found: {error.strerror or error}{where}; "
            "check the path, its rights and the free space"
        )


def fail(message: str) -> NoReturn:
    """One line on standard error, and exit status 2."""
    print("tsfm: error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def dispatch(words: list[str]) -> int:
    """Find the command that the words begin with and call it with the rest; returns the exit status."""
    if not words or words[0] in ("-h", "--help"):
        print(usage(COMMANDS))
        return 0
    if words[0] == "--version":
        print(f"tsfm {tsfm.__version__}")
        return 0
    group = {name: entry for name, entry in COMMANDS.items() if name.split()[0] == words[0]}
    if not group:
        raise unknown_name("command", words[0], {name.split()[0] for name in COMMANDS})
    if list(group) == [words[0]]:
        name, rest = words[0], words[1:]
    elif len(words) < 2 or words[1] in ("-h", "--help"):
        print(usage(group))
        return 0 if len(words) > 1 else 2
    else:
        name, rest = " ".join(words[:2]), words[2:]
        if name not in group:
            raise unknown_name(f"command of tsfm {words[0]}", words[1], [key.split()[1] for key in group])
    module, function = COMMANDS[name][0].split(":")
    target = getattr(importlib.import_module(module), function)
    if module.endswith(".train"):  # Lightning has a parser of its own
        return target([name, *rest])
    return call(f"tsfm {name}", target, rest)


def usage(commands: dict[str, tuple[str, str]]) -> str:
    """The help text of the whole command or of one group."""
    width = max(map(len, commands))
    lines = [f"  tsfm {name:<{width}}  {text}" for name, (_, text) in commands.items()]
    return "\n".join(["usage: tsfm COMMAND ... (tsfm COMMAND --help says more)", "", *lines])


def call(program: str, function: Callable[..., object], words: Sequence[str]) -> int:
    """Parse the words into the function's parameters and call it; returns the exit status."""
    from tsfm.commands.arguments import parse

    status = function(**parse(program, function, words))
    return status if isinstance(status, int) else 0
