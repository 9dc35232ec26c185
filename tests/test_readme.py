"""What README.md shows is there. Blocks are found, not listed; test_installed.py runs them, from top to bottom.

A block that cannot be run stands under ``<!-- not run: REASON -->``; its ``tsfm`` commands and their options are
checked here.
"""

import importlib
import inspect
import shlex

import pytest
from readme import README, SHELLS, Block, blocks

from tsfm.commands.arguments import parse
from tsfm.commands.cli import COMMANDS


def test_when_the_readme_is_read_then_every_block_has_a_language_that_is_run() -> None:
    assert README
    assert {block.kind for block in README} <= {"python", *SHELLS}
    run = [words[0] for block in README if not block.reason and block.kind in SHELLS for words in block.commands()]
    assert set(run) == {"tsfm", "python"}, "mark a block of other commands <!-- not run: REASON -->"


MARKED = [words for block in README if block.reason and block.kind in SHELLS for words in block.commands()]


@pytest.mark.parametrize("words", [words for words in MARKED if words[0] == "tsfm"], ids=shlex.join)
def test_when_a_command_of_the_readme_is_not_run_then_it_and_its_options_are_there(words: list[str]) -> None:
    name = next(name for name in (" ".join(words[1:3]), words[1]) if name in COMMANDS)
    module, function = COMMANDS[name][0].split(":")
    assert module != "tsfm.commands.train", "Lightning's options are checked by running the command"
    target = getattr(importlib.import_module(module), function)
    given = parse(f"tsfm {name}", target, words[1 + len(name.split()) :])
    assert given.keys() <= inspect.signature(target).parameters.keys()


def test_when_a_page_is_read_then_blocks_are_told_apart() -> None:
    text = (
        "```bash\nmake demo\n$ tsfm forecast a.csv \\\n  --horizon 3  # comment\n```\n\n<!-- not run: downloads -->\n"
        "```python\nimport tsfm\n```\n\n```\ntsfm x\n```\n"
    )
    first, second, third = blocks(text)
    assert first.commands() == [["make", "demo"], ["tsfm", "forecast", "a.csv", "--horizon", "3"]]
    assert (first.kind, first.reason) == ("bash", None)
    assert second == Block("python", "import tsfm\n", "downloads")
    assert (third.kind, third.text) == ("", "tsfm x\n")
