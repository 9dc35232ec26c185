"""Tables in many files: how commands take a folder, a pattern or a URL."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tsfm
from tsfm import inference
from tsfm.commands.arguments import Columns
from tsfm_data import io
from tsfm_data.errors import InputError, check_sizes
from tsfm_data.output import note, say

if TYPE_CHECKING:
    import pandas

TABLES = (".csv", ".parquet", ".json")


@dataclass(frozen=True)
class Partitions:
    """How a table in many files is processed; options that several commands share.

    Args:
        engine: where a table in many files is processed: local (this process, the default), or ray (the cluster at
            RAY_ADDRESS, else this machine; needs the extra "ray").
        workers: worker processes of --engine ray, one CPU each; by default one per CPU of the cluster.
    """

    engine: Literal["local", "ray"] | None = None
    workers: int | None = None

    def are_asked_for(self, input: str, output: Path | None) -> bool:
        """Whether the input is a table in many files: a URL, a pattern, a folder, or any file if an engine is given.

        A folder whose output is to be one table is none, so that the file that is meant can be named.
        """
        one = output is None or output.suffix in TABLES
        return (
            self.engine is not None or "://" in input or inference.is_glob(input) or (Path(input).is_dir() and not one)
        )

    def run(
        self,
        command: str,
        input: str,
        output: Path | None,
        columns: Columns,
        answer: "Callable[[io.SeriesSet], pandas.DataFrame]",
        asked: dict[str, Any],
        overwrite: bool,
        most: int | None = None,
        **unusable: object,
    ) -> int:
        """Answer every part of the input, with progress; returns the exit status, 1 if a part failed.

        Args:
            command: its name.
            input: folder, pattern, URL or file.
            output: folder or URL.
            columns: how the parts are read.
            answer: from series to the rows of the output; it can be sent to another process.
            asked: what else the output depends on, such as the model.
            overwrite: whether the output of another run may be removed.
            most: most series at a time.
            **unusable: options that do not apply here, by name; each has to be None or False.

        Raises:
            InputError: an option that does not apply, or as ``inference.run_parts``.
        """
        for name, value in {**unusable, "future": columns.future}.items():
            if value is not None and value is not False:
                raise InputError(
                    f"expected no --{name.replace('_', '-')} with a table in many files, found {str(value)!r}: "
                    "leave it out" + (", and put the future into the parts" if name == "future" else "")
                )
        check_sizes(workers=self.workers)
        if self.engine != "ray" and self.workers not in (None, 1):
            raise InputError(f"expected one worker without --engine ray, found {self.workers}: give --engine ray")
        if output is None or output.suffix in TABLES:
            raise InputError(
                f"expected a folder as output of a table in many files, found {output or 'none'}: give --output FOLDER"
            )
        work = inference.Work(answer, columns.given(), place_of(output), most or io.PART_SERIES)
        asked = {"command": command, "input": place_of(Path(input)), **asked}
        asked |= {"columns": columns.given(), "version": tsfm.__version__}
        engine = inference.run_on_ray if self.engine == "ray" else inference.run_locally
        run = inference.run_parts(
            input, asked, work, engine, self.workers, overwrite, lambda line: note(f"error: {line}")
        )
        done, failed, gone = (run.those(state) for state in ("done", "failed", "gone"))
        if gone:
            note(f"note: {len(gone)} parts are no longer in the input; their outputs stay, such as {gone[0]['output']}")
        if not done:
            raise InputError(f"expected parts that can be read in {input}, found none among {len(failed)}: see above")
        kept = f" ({run.kept:,} of them before)" if run.kept else ""
        say(
            f"{work.output}: {len(done):,} of {len(done) + len(failed):,} parts done{kept}, {run.total('series'):,} "
            f"series, {run.total('rows'):,} rows"
        )
        return 1 if failed else 0


def place_of(path: Path) -> str:
    """A path as an absolute one, or the URL that it was: ``Path`` leaves one slash of ``s3://bucket``."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", str(path))
    return f"{match[1]}://{str(path)[match.end() :]}" if match else str(path.absolute())
