"""Forecasts of large tables in pieces, one per part, so that memory stays flat and a stopped command can go on."""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tsfm
from tsfm import inference
from tsfm_data import io
from tsfm_data.errors import InputError
from tsfm_data.output import note
from tsfm_data.progress import progress

if TYPE_CHECKING:
    import pandas

    from tsfm_data.evaluation import Predictor

ENDS = 1 << 20  # bytes at both ends of the input that tell whether it has changed
SMALL = 1 << 20  # bytes; a smaller input is always read at once
VALUES = 8_000_000  # most values in the forecasts of a part
KEY, ROWS = "key.json", "rows"  # names in the folder of pieces


def forecast_parts(
    input: str,
    output: Path | None,
    options: dict[str, Any],
    predictor: "Predictor",
    forecast: Callable[["io.SeriesSet"], "pandas.DataFrame"],
) -> int | None:
    """Forecast a large long table part by part, to a CSV or Parquet file or to standard output.

    Args:
        input: the table.
        output: the file; None writes CSV to standard output.
        options: what else the forecasts depend on: "columns" (options of ``read_series``), "horizon", "levels", "model"
            (its name), ...
        predictor: the model.
        forecast: the forecasts of some series, with the columns that are written.

    Returns:
        The number of series; None if the table has to be read at once. Nothing is written then.

    Raises:
        InputError: the table cannot be read or forecast.
        KeyboardInterrupt: stopped by the user, with a line that says how to go on.
    """
    if not Path(input).is_file() or Path(input).stat().st_size < SMALL:
        return None
    most = most_series(options["horizon"], options["levels"])
    key = {**options, "model": inference.model_key(predictor, options["model"]), "input": _input_key(input)}
    with _folder(output, key | {"version": tsfm.__version__}) as folder:
        parts = io.open_parts(Path(input), folder / ROWS, most=most, **options["columns"])
        if parts is None:
            return None
        warn(predictor, parts)
        say_notes(parts)
        done = 0
        pieces = [folder / f"{number:06d}{output.suffix if output else '.csv'}" for number in range(len(parts))]
        try:
            with progress(None, "forecast", total=parts.series, unit="series") as bar:
                for number, piece in enumerate(pieces):
                    if not piece.exists():
                        _write(parts[number], forecast, piece, header=output is not None or number == 0)
                    if output is None:
                        _print(piece)
                    done += 1
                    bar.update(parts.series * done // len(parts) - bar.n)
            if output is not None:
                _join(pieces, output)
        except KeyboardInterrupt:
            after = f"interrupted after {done} of {len(parts)} parts"
            raise KeyboardInterrupt(after if output is None else f"{after}: the same command goes on") from None
        return parts.series


def most_series(horizon: int, levels: Sequence[float]) -> int:
    """Most series that are forecast before their forecasts are written."""
    return max(1, min(io.PART_SERIES, VALUES // (horizon * (1 + len(levels)))))


def warnings_about(predictor: "Predictor", series: "io.SeriesSet | io.Parts") -> list[str]:
    """Warnings about covariates and about series without values."""
    return [*filter(None, (inference.check_covariates(predictor, series), inference.check_observed(series)))]


def warn(predictor: "Predictor", series: "io.SeriesSet | io.Parts") -> None:
    """Print those warnings to standard error."""
    for warning in warnings_about(predictor, series):
        note(f"warning: {warning}")


def say_notes(series: "io.SeriesSet | io.Parts") -> None:
    """Print the notes about how a table was read to standard error."""
    for text in series.notes:
        note(f"note: {text}")


@contextlib.contextmanager
def _folder(output: Path | None, key: dict[str, Any]) -> Iterator[Path]:
    """A folder for pieces: that of a stopped run with the same key, else an empty one.

    It stays if the block is stopped or the disk is full.
    """
    if output is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = output.absolute().with_name(f".{output.name}.pieces")
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, folder)
        stack.enter_context(io.lock_folder(folder))
        shutil.rmtree(folder / ROWS, ignore_errors=True)
        text = json.dumps(key, default=str, sort_keys=True)
        known = folder / KEY
        if not known.is_file() or known.read_text(encoding="utf-8") != text:
            _clear(folder)
            known.write_text(text, encoding="utf-8")
        keep = False
        try:
            yield folder
        except (KeyboardInterrupt, OSError):
            keep = any(folder.glob("0*"))
            raise
        finally:
            shutil.rmtree(folder / ROWS, ignore_errors=True)
            if not keep:
                _clear(folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # there are pieces
        folder.rmdir()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _input_key(path: str) -> list[Any]:
    """What tells whether a file is the same: place, size, time of change, and a hash of its ends."""
    place = Path(path)
    with place.open("rb") as file:
        size = place.stat().st_size
        digest = hashlib.sha256(file.read(ENDS))
        file.seek(max(0, size - ENDS))
        digest.update(file.read(ENDS))
    return [str(place.absolute()), size, place.stat().st_mtime_ns, digest.hexdigest()]


def _write(
    series: "io.SeriesSet | None", forecast: Callable[["io.SeriesSet"], "pandas.DataFrame"], piece: Path, header: bool
) -> None:
    """Write the forecasts of a part; an empty file if all of its series were left out."""
    with io.atomic_file(piece) as file:
        if series is None:
            return
        frame = forecast(series)
        if piece.suffix == ".parquet":
            frame.to_parquet(file, index=False)
        else:
            frame.to_csv(file, index=False, header=header)


def _print(piece: Path) -> None:
    with piece.open(encoding="utf-8", newline="") as file:
        shutil.copyfileobj(file, sys.stdout)
    piece.write_bytes(b"")


def _join(pieces: list[Path], output: Path) -> None:
    """Write the pieces as one file, whole or not at all."""
    pieces = [piece for piece in pieces if piece.stat().st_size]
    with io.atomic_file(output) as file:
        if output.suffix == ".csv":
            with file.open("wb") as target:
                for number, piece in enumerate(pieces):
                    with piece.open("rb") as source:
                        if number:
                            source.readline()
                        shutil.copyfileobj(source, target, 1 << 20)
            return
        import pyarrow.parquet

        schema = pyarrow.parquet.read_schema(pieces[0])
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            for piece in pieces:
                try:
                    writer.write_table(pyarrow.parquet.read_table(piece).cast(schema))
                except pyarrow.ArrowInvalid as error:
                    raise InputError(f"{output}: expected forecasts of one type, found {error}: write CSV") from error
