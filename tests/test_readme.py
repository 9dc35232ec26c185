"""What README.md shows works: every block of commands and of Python runs in one folder, from top to bottom.

Blocks are found, not listed. One that cannot run here stands under ``<!-- not run: REASON -->`` and counts as skipped.
A block may hold ``tsfm`` and ``python`` commands.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import run

ROOT = Path(__file__).resolve().parent.parent
SHELLS = ("bash", "sh", "console", "shell")
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.*?) -->\s*)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


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
    return [Block(m["kind"], m["text"], m["reason"]) for m in BLOCK.finditer(text)]


README = blocks((ROOT / "README.md").read_text(encoding="utf-8"))


def test_when_the_blocks_of_the_readme_are_run_in_order_then_each_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for block in README:
        if block.reason:
            continue
        if block.kind == "python":
            exec(compile(block.text, "README.md", "exec"), {"__name__": "readme"})
        elif block.kind in SHELLS:
            for words in block.commands():
                run_command(words, capsys)


def run_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command for a shell: ours in this process, Python in another."""
    if words[0] == "tsfm":
        result = run(capsys, *words[1:])
        assert result.status == 0, f"{shlex.join(words)}: {result.err}"
    elif words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], text=True, capture_output=True)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    else:
        pytest.fail(f"README.md: {shlex.join(words)} would not be run: mark its block <!-- not run: REASON -->")


@pytest.mark.parametrize("block", [b for b in README if b.reason], ids=lambda b: b.text.strip().splitlines()[0][:60])
def test_when_a_block_of_the_readme_is_marked_then_it_is_counted_as_skipped(block: Block) -> None:
    pytest.skip(f"README.md says: not run: {block.reason}")


def test_when_the_readme_is_read_then_blocks_are_told_apart() -> None:
    text = (
        "```bash\nmake demo\n$ tsfm forecast a.csv \\\n  --horizon 3  # comment\n```\n\n<!-- not run: downloads -->\n"
        "```python\nimport tsfm\n```\n\n```text\ntsfm x\n```\n"
    )
    first, second, third = blocks(text)
    assert first.commands() == [["make", "demo"], ["tsfm", "forecast", "a.csv", "--horizon", "3"]]
    assert (first.kind, first.reason) == ("bash", None)
    assert (second.kind, second.reason) == ("python", "downloads")
    assert third.kind == "text"
