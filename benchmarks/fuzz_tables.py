"""Targets of ``fuzz.py``: the readers of tables, and a forecast of what they read."""

import bz2
import gzip
import io
import lzma
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
from fuzzing import Target
from PIL import Image

from tsfm.inference import forecast_frame, load_predictor
from tsfm_data.images import open_images
from tsfm_data.io import SeriesSet, read_series

HORIZON = 3


def wide(rows: int = 30, freq: str = "D") -> pd.DataFrame:
    """A date column and two columns of values, one of them with a gap."""
    steps = np.arange(rows)
    frame = pd.DataFrame(
        {"date": pd.date_range("2024-01-01", periods=rows, freq=freq), "a": steps * 1.5, "b": steps % 7}
    )
    frame.loc[5, "a"] = np.nan
    return frame


def long(series: int = 3, rows: int = 12) -> pd.DataFrame:
    """Ids, hours, values, a covariate and a constant word per series."""
    stamps = pd.date_range("2024-01-01", periods=rows, freq="h")
    parts = [
        pd.DataFrame({"id": f"s{i}", "timestamp": stamps, "target": np.arange(rows) + i / 2, "p": 0.5, "city": f"c{i}"})
        for i in range(series)
    ]
    return pd.concat(parts, ignore_index=True)


def texts() -> dict[str, str]:
    """Tables as text, by a name for each kind of layout and of dates that the reader knows."""
    rows, days = range(1, 25), pd.date_range("2024-01-01", periods=24, freq="D")
    german = ["Datum;Wert", *(f"{day:%d.%m.%Y};1.{i:03d},5" for i, day in zip(rows, days, strict=True))]
    words = ["date,open,v", *(f"{day:%Y-%m-%d},{'yes' if i % 3 else 'no'},{i}" for i, day in enumerate(days))]
    split = ["year,month,day,hour,v", *(f"2024,1,{1 + i // 12},{i % 12},{i}" for i in rows)]
    across = ["id," + ",".join(f"{day:%Y-%m-%d}" for day in days), *(f"s{i}," + ",".join(["1.5"] * 24) for i in (1, 2))]
    zoned = ["date,v", *(f"{day:%Y-%m-%d}T00:00:00+0{1 + (i > 9)}:00,{i}" for i, day in enumerate(days))]
    stocks = [
        "date,symbol,price",
        *(f"{day:%b %d %Y},{name},$1'{i}00.5" for i, day in enumerate(days) for name in "AB"),
    ]
    tables = {
        "wide": wide().to_csv(index=False),
        "long": long().to_csv(index=False),
        "pipe": long(2, 8).to_csv(index=False, sep="|"),
        "tab": wide().to_csv(index=True, sep="\t"),
        "month": wide(freq="MS").to_csv(index=False),
        "quarter": "q,v\n" + "".join(f"{2019 + i // 4}Q{1 + i % 4},{i}\n" for i in range(16)),
        "epoch": "ts,v\n" + "".join(f"{1_700_000_000 + 3600 * i},{i}\n" for i in range(16)),
        "step": "t,v\n" + "".join(f"{i},{i * i}\n" for i in range(16)),
        "bare": "v\n" + "".join(f"{i}\n" for i in range(16)),
        "numbers": "date,v\n" + "".join(f"{20240101 + i},\"{i},5\"\n" for i in range(16)),
        "sep": "sep=;\ndate;v\n" + "".join(f"2024-01-{i:02d} 10:00;{i}\n" for i in rows),
        "fiscal": "fy,v\n" + "".join(f"FY{2000 + i},{i}\n" for i in range(12)),
        "week": "yearweek,v\n" + "".join(f"2024-W{i:02d},{i}\n" for i in rows),
        "total": "date,v\n" + "".join(f"2024-01-{i:02d},{i}\n" for i in rows) + "Total,300\n",
    }  # fmt: skip
    lines = {"german": german, "words": words, "split": split, "across": across, "zoned": zoned, "stocks": stocks}
    return tables | {name: "\n".join(part) + "\n" for name, part in lines.items()}


def csv_seeds(folder: Path) -> list[Path]:
    """Text tables of every layout."""
    paths = []
    for name, text in texts().items():
        paths.append(folder / f"{name}.csv")
        paths[-1].write_text(text)
    return paths


def packed_seeds(folder: Path) -> list[Path]:
    """Compressed text tables."""
    data = wide().to_csv(index=False).encode(), long().to_csv(index=False).encode()
    made = {"wide.csv.gz": gzip.compress(data[0]), "long.csv.gz": gzip.compress(data[1])}
    made |= {"wide.csv.bz2": bz2.compress(data[0]), "wide.csv.xz": lzma.compress(data[0])}
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in made if name.endswith(".gz")]


def frames() -> dict[str, pd.DataFrame]:
    """Tables with the types that data frames have."""
    category = long().assign(id=long()["id"].astype("category"), n=pd.array([1, None] * 18, dtype="Int64"))
    zoned = wide().assign(date=wide()["date"].dt.tz_localize("Europe/Berlin"))
    period = wide(freq="MS").assign(date=pd.period_range("2024-01", periods=30, freq="M"))
    return {"wide": wide(), "long": long(), "category": category, "zone": zoned, "index": wide().set_index("date"),
            "period": period, "several": long().set_index(["id", "timestamp"])}  # fmt: skip


def parquet_seeds(folder: Path) -> list[Path]:
    """Parquet files."""
    for name, frame in frames().items():
        frame.to_parquet(folder / f"{name}.parquet", compression=None if name == "wide" else "snappy")
    return sorted(folder.glob("*.parquet"))


def arrow_seeds(folder: Path) -> list[Path]:
    """Arrow streams, Arrow files and Feather files."""
    for name, frame in frames().items():
        table = pa.Table.from_pandas(frame)
        for make, place in ((pa.ipc.new_file, f"{name}_file.arrow"), (pa.ipc.new_stream, f"{name}_stream.arrow")):
            with make(folder / place, table.schema) as writer:
                writer.write_table(table)
        pyarrow.feather.write_feather(table, folder / f"{name}.feather", compression="uncompressed")
    return sorted(folder.iterdir())


def image_seeds(folder: Path) -> list[Path]:
    """Images in Parquet files, as bytes and as records with bytes."""
    made = io.BytesIO()
    Image.new("L", (8, 8), 7).save(made, "png")
    labels = pa.array([0, 1, 0, 1])
    images = pa.array([made.getvalue()] * 4)
    for name, column in (("bytes", images), ("records", pa.StructArray.from_arrays([images], ["bytes"]))):
        pyarrow.parquet.write_table(pa.table({"image": column, "label": labels}), folder / f"{name}.parquet")
    return sorted(folder.iterdir())


def excel_seeds(folder: Path) -> list[Path]:
    """Workbooks."""
    wide().to_excel(folder / "wide.xlsx", index=False)
    with pd.ExcelWriter(folder / "two.xlsx") as book:
        pd.DataFrame().to_excel(book, sheet_name="empty")
        long(2, 6).to_excel(book, sheet_name="data", startrow=2)
    return sorted(folder.iterdir())


def read(path: Path) -> SeriesSet:
    """The series of a table, checked for what later code relies on."""
    series = read_series(path)
    assert len(series.values) == len(series.past) == len(series.known) == series.offsets[-1]
    assert (np.diff(series.offsets) > 0).all(), "a series without rows"
    for block in (series.values, series.past, series.known):
        assert not np.isinf(block).any(), "an infinite value"
    return series


def forecast(path: Path) -> str:
    """The seasonal naive forecast of a table, as the command prints it."""
    series = read(path)
    frame = forecast_frame(load_predictor("seasonal-naive"), series, HORIZON, [0.1, 0.5, 0.9], 256)
    out = io.StringIO()
    series.present(frame).to_csv(out, index=False)
    return out.getvalue()


TARGETS = [
    Target("csv", csv_seeds, read),
    Target("gz", packed_seeds, read),
    Target("parquet", parquet_seeds, read),
    Target("arrow", arrow_seeds, read),
    Target("excel", excel_seeds, read),
    Target("images", image_seeds, lambda path: {n: part.decoded() for n, part in open_images(path).items()}),
    Target("forecast", csv_seeds, forecast),
]
