"""The command ``tsfm``: a table of commands. A command is imported when it is called, so that help is fast."""

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NoReturn

import tsfm
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.output import note

# Name -> its function, and its line in the help. A name of two words is a command in a group. Packages add further
# commands by entry points (``tsfm.commands.added``).
COMMANDS = {
    "forecast": ("tsfm.commands.forecast:forecast", "forecast past the end of your series"),
    "detect": ("tsfm.commands.detect:detect", "find anomalies in your series, at a rate of false alarms"),
    "embed": ("tsfm.commands.embed:embed", "write one vector per series, for search and clustering"),
    "classify fit": ("tsfm.commands.classify:fit", "fit a classifier to labelled series"),
    "classify predict": ("tsfm.commands.classify:predict", "print the most probable class of each series"),
    "classify evaluate": ("tsfm.commands.classify:evaluate", "score a classifier on labelled series"),
    "impute": ("tsfm.commands.impute:impute", "fill the gaps of your series from both sides"),
    "evaluate": ("tsfm.commands.evaluate:evaluate", "score a model on held-out windows of a data set or your file"),
    "backtest": ("tsfm.commands.backtest:backtest", "compare models on your file; save the best or an ensemble"),
    "finetune": ("tsfm.commands.finetune:finetune", "adapt a model to your series; kept only if it is better"),
    "export": ("tsfm.commands.export:export", "write a model as ONNX or torch.export, and check it"),
    "fit": ("tsfm.commands.train:train", "train a model from YAML (Lightning CLI)"),
    "validate": ("tsfm.commands.train:train", "validation error of a checkpoint (Lightning CLI)"),
    "test": ("tsfm.commands.train:train", "test error of a checkpoint (Lightning CLI)"),
    "predict": ("tsfm.commands.train:train", "forecast past the end of a config's data (Lightning CLI)"),
    "configs list": ("tsfm.commands.configs:list_", "list the configs that ship"),
    "configs show": ("tsfm.commands.configs:show", "print a config"),
    "configs copy": ("tsfm.commands.configs:copy", "copy a config to change it"),
    "scaling sweep": ("tsfm.commands.scaling:sweep", "train a grid of models and record each run in a table"),
    "scaling counts": ("tsfm.commands.scaling:counts", "count parameters and FLOPs, and compare with 6 N D"),
    "scaling fit": ("tsfm.commands.scaling:fit", "fit scaling laws to a table of runs"),
    "scaling plan": ("tsfm.commands.scaling:plan", "choose model size and data for a compute budget"),
    "scaling selftest": ("tsfm.commands.scaling:selftest", "reproduce published scaling laws"),
    "weights list": ("tsfm.commands.weights:list_", "list all named models, ours and published ones"),
    "weights pull": ("tsfm.commands.weights:pull", "download a model and verify it"),
    "weights mirror": ("tsfm.commands.weights:mirror", "copy a model for machines without network"),
    "weights verify": ("tsfm.commands.weights:verify", "check the files of a model folder or a mirror"),
    "weights convert": ("tsfm.commands.weights:convert", "turn a published checkpoint into a model folder"),
    "weights card": ("tsfm.commands.weights:card", "write the model card from the files of a model folder"),
    "data list": ("tsfm.commands.data:list_", "list the named data sets"),
    "data pull": ("tsfm.commands.data:pull", "download a data set and verify it"),
    "data inspect": ("tsfm.commands.data:inspect", "show how your file is read"),
    "data build": ("tsfm.commands.data_build:build", "build a pretraining corpus from a list of sources"),
    "data verify": ("tsfm.commands.data_build:verify", "check the files of a corpus"),
    "data overlap": ("tsfm.commands.data_build:overlap", "show which evaluation series a corpus contains"),
    "data gallery": ("tsfm.commands.data_gallery:gallery", "draw synthetic series next to real ones"),
    "demo": ("tsfm.commands.demo:demo", "train on small real data sets and write a report page"),
    "doctor": ("tsfm.commands.doctor:doctor", "check the installation and show which kernels run here"),
}
# Heading of help -> the first words of the commands under it; every other command is under "other".
HEADINGS = {
    "forecast": ("forecast", "detect", "impute", "embed", "classify", "evaluate", "backtest", "finetune", "export"),
    "train": ("fit", "validate", "test", "predict", "configs"),
    "scale": ("scaling",),
    "images": ("image",),
    "weights": ("weights",),
    "data": ("data",),
}
BROKEN_PIPE = 141  # the status of every program that ends because its reader did
LACKS_MEMORY = ("allocate memory", "failed to map segment", "out of memory", "can't start new thread")
INTERRUPTED = "interrupted: no file is left half-written"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: status 0 on success, 2 with one line on standard error for a user's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end_with(lambda: dispatch(words))


def end_with(function: Callable[[], int]) -> NoReturn:
    """Call a function and exit with its status; an error that is not a defect of ours becomes one line and status 2."""
    try:
        open_streams()
        with interruptible():
            status = function()
            sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt as error:
        fail(str(error) or INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has closed it, for instance head
        drop_output()
        sys.exit(BROKEN_PIPE)
    except InputError as error:
        fail(str(error))
    except OSError as error:
        drop_output()
        name = error.filename2 or error.filename  # filename2 is the target of a rename
        where = f" ({name})" if name else ""
        fail(
            f"expected a file or folder that can be read and written, found: {error.strerror or error}{where}; "
            "check the path, its rights and the free space"
        )
    except UnicodeEncodeError as error:
        drop_output()
        fail(
            f"expected text that {error.encoding} can encode, found {error.object[error.start : error.end]!a}: set "
            "PYTHONIOENCODING=utf-8, or give --output"
        )
    except Exception as error:
        if not lacks_memory(error):
            raise
        drop_output()
        fail(
            "expected more free memory, found too little for this command: free some, raise its limit, or give it less "
            "data or smaller batches"
        )


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left; PyTorch and the loader of libraries do so in words."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in LACKS_MEMORY)


def open_streams() -> None:
    """Open the standard input and error if they are closed, because the next files would take their numbers.

    Raises:
        InputError: the standard output is closed, so that results would be lost.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode))  # noqa: SIM115 - it takes the free number
            if number == 1:
                raise InputError("expected a standard output, found it closed: send it to a file or to /dev/null")


def drop_output() -> None:
    """If the standard output cannot be written, drop what is left of it; Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, with its files cleaned up."""
    process = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        if os.getpid() == process:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a worker process, which its parent ends
        os.kill(os.getpid(), number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    changed = [number for number in numbers if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2."""
    note(f"tsfm: error: {message}")
    sys.exit(2)


def dispatch(words: list[str]) -> int:
    """Call the command given by the first words with the other words; returns the exit status."""
    if words[:1] == ["--version"]:
        print(f"tsfm {tsfm.__version__}")
        return 0
    if (name := command_of(words, COMMANDS)) is not None:
        module, function = COMMANDS[name][0].split(":")
        target, rest = getattr(importlib.import_module(module), function), words[len(name.split()) :]
        if module.endswith(".train"):  # Lightning has its own parser
            return target([name, *rest])
        return call(f"tsfm {name}", target, rest)
    from tsfm.commands.added import added_commands, function_of, outline, summary

    added = added_commands(COMMANDS)
    if (name := command_of(words, added)) is not None:
        entry, rest = added[name], words[len(name.split()) :]
        options = outline(entry) or function_of(entry)
        return call(f"tsfm {name}", lambda **given: function_of(entry)(**given), rest, options)
    lines = {name: text for name, (_, text) in COMMANDS.items()}
    lines |= {name: summary(entry) for name, entry in added.items()}
    if not words or words[0] in ("-h", "--help"):
        print(usage(lines))
        return 0
    group = {name: text for name, text in lines.items() if name.split()[0] == words[0]}
    if not group:
        raise unknown_name("command", words[0], {name.split()[0] for name in lines})
    if len(words) > 1 and words[1] not in ("-h", "--help"):
        raise unknown_name(f"command of tsfm {words[0]}", words[1], [name.split()[1] for name in group])
    print(usage(group))
    return 0 if len(words) > 1 else 2


def command_of(words: Sequence[str], names: Collection[str]) -> str | None:
    """The longest name that the words begin with; None if there is none."""
    beginnings = (" ".join(words[:count]) for count in range(len(words), 0, -1))
    return next((beginning for beginning in beginnings if beginning in names), None)


def usage(lines: Mapping[str, str]) -> str:
    """The help text of all commands or of one group: one line per command, under headings."""
    width = max(map(len, lines))
    text = ["usage: tsfm COMMAND ... (tsfm COMMAND --help shows the options)"]
    headings = {word: heading for heading, words in HEADINGS.items() for word in words}
    for heading in (*HEADINGS, "other"):
        shown = heading
        for name, line in lines.items():
            if headings.get(name.split()[0], "other") == heading:
                text.append(f"{shown:<8}  tsfm {name:<{width}}  {line}")
                shown = ""
    return "\n".join(text)


def call(
    program: str,
    function: Callable[..., object],
    words: Sequence[str],
    options: Callable[..., object] | None = None,
) -> int:
    """Parse the words into the function's parameters and call it; returns the exit status.

    Args:
        program: the command, as shown in the help.
        function: the function to call.
        words: arguments of the command line.
        options: a function whose parameters and docstring define the options; by default ``function``.
    """
    from tsfm.commands.arguments import parse

    status = function(**parse(program, options or function, words))
    return status if isinstance(status, int) else 0
