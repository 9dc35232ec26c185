"""The blocks of README.md: what stands between fences, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

SHELLS = ("bash", "sh", "console", "shell")
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*?) -->\s*)?^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run, if it is not."""

    kind: str
    text: str
    reason: str | None

    def commands(self) -> list[list[str]]:
        """The words of every command in a block for the shell."""
        lines = [line.strip().removeprefix("$ ") for line in self.text.replace("\\\n", " ").splitlines()]
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    return [Block(m["kind"].strip(), m["text"], m["reason"]) for m in BLOCK.finditer(text)]


README = blocks((Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8"))
