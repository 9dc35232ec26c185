"""``tsfm embed``: one vector per series of a table, or one per patch."""

from pathlib import Path

from tsfm import inference
from tsfm.commands.arguments import Columns
from tsfm.commands.forecast import TABLES, frame_without_formulas, write_frame
from tsfm.commands.pieces import say_notes
from tsfm_data import io
from tsfm_data.output import say


def embed(
    input: str,
    *,
    output: Path,
    model: str | None = None,
    patches: bool = False,
    overwrite: bool = False,
    safe_csv: bool = False,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    batch_size: int = 256,
) -> None:
    """Write one vector per series of a table: similar series have vectors at a small Euclidean distance.

    A vector does not depend on scale and offset of its series, nor on the other series. It combines tokens of a
    zero-shot model with statistics of the series.

    Args:
        input: CSV, Excel, Parquet or Arrow file ("-" for standard input), or a data set of the catalogue.
        output: file for the vectors (.csv, .parquet or .json): ids and the columns e0, e1, ...
        model: a zero-shot model: a name of tsfm weights list, or a model folder; by default the one that ships with
            the package.
        patches: write one vector per patch of each series instead: the token of the model, with its first time.
        overwrite: replace an existing output.
        safe_csv: in CSV, put an apostrophe before ids and names of columns that a spreadsheet would run as a formula.
        columns: how the table is read.
        batch_size: largest number of windows per batch.
    """
    io.check_suffix(output, TABLES)
    io.check_new([output], overwrite, [input, model])
    predictor = inference.load_model(model)
    series = io.open_source(input, **columns.given())
    say_notes(series)
    frame = series.present(inference.embedding_frame(predictor, series, batch_size, patches))
    write_frame(frame_without_formulas(frame) if safe_csv and output.suffix == ".csv" else frame, output)
    say(f"{output}: {len(frame):,} vectors, model {predictor.name}")
