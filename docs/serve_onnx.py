"""Forecast with an exported model, without tsfm. It needs only numpy and onnxruntime.

tsfm export --output model.onnx
python serve_onnx.py model.onnx < values.csv

Standard input has one series per line: comma-separated values, the oldest first. An empty field is a missing value.
Standard output has one line per series and step: number of the series, step, and one value per quantile level.
"""

import sys

import numpy as np
import onnxruntime


def main(model: str) -> None:
    """Read series from standard input and write quantiles to standard output."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    levels = session.get_modelmeta().custom_metadata_map["levels"].split(", ")
    series = [[float(field or "nan") for field in line.strip().split(",")] for line in sys.stdin if line.strip()]
    past = np.full((len(series), max(map(len, series))), np.nan)
    for row, values in zip(past, series, strict=True):
        row[len(row) - len(values) :] = values  # shorter series are padded in front with missing values
    (quantiles,) = session.run(None, {"past": past})
    print(",".join(["series", "step", *levels]))
    for k, forecast in enumerate(quantiles):
        for step, values in enumerate(forecast, start=1):
            print(",".join([str(k), str(step), *(f"{value:.6g}" for value in values)]))


if __name__ == "__main__":
    main(sys.argv[1])
