"""Writes a traced model as an ONNX file. It needs the extra "export", so it is imported only for writing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx_ir import DataType
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.core import aten_sum_dim_IntList


def write(
    program: torch.export.ExportedProgram, file: Path, levels: tuple[float, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    """Write the graph as ONNX; returns the function that runs the file with ONNX Runtime."""
    table: dict[Any, Any] = missing_operators()
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["past"],
        output_names=["quantiles"],
        custom_translation_table=table,
        verbose=False,
    )
    if onnx_program is None:
        raise RuntimeError("expected an ONNX program, found none")
    proto = onnx_program.model_proto
    for node in proto.graph.node:  # the exporter records source lines, which are four fifths of a small file
        del node.metadata_props[:]
    onnx.helper.set_model_props(proto, {"levels": ", ".join(f"{level:g}" for level in levels)})
    file.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda past: session.run(None, {"past": past})[0]


def missing_operators() -> dict[Any, Any]:
    """Translations of PyTorch operators that ONNX or ONNX Runtime lacks, or for which it is slow."""

    def part(x: Any, begin: int, end: int, axis: int) -> Any:
        bounds: Any = [op.Constant(value_ints=[value]) for value in (begin, end, axis)]
        return op.Slice(x, *bounds)

    def cummax(x: Any, dim: int) -> tuple[Any, Any]:
        steps, step = x.shape[dim], 1
        while step < steps:  # every iteration doubles the range of the maximum
            # The first steps are compared with themselves. Were they kept by another slice, the exporter would take the
            # two slices for a split into halves, which is wrong for an odd number of steps.
            earlier = op.Concat(part(x, 0, step, dim), part(x, 0, steps - step, dim), axis=dim)
            x = op.Max(x, earlier)
            step *= 2
        return x, x  # no model uses the indices

    def where(condition: Any, yes: Any, no: Any) -> Any:
        if yes.dtype != DataType.BOOL:
            return op.Where(condition, yes, no)
        return op.Or(op.And(condition, yes), op.And(op.Not(condition), no))

    def power(x: Any, exponent: float) -> Any:
        number: Any = op.Constant(value_float=exponent)
        return op.Mul(x, x) if exponent == 2 else op.Pow(x, op.CastLike(number, x))

    def total(x: Any, dim: Any = None, keepdim: bool = False, dtype: int = -1) -> Any:
        cast = x.producer() if dim is not None and x.dtype == DataType.INT64 else None
        if cast is None or cast.op_type != "Cast" or cast.inputs[0].dtype != DataType.BOOL:
            return aten_sum_dim_IntList(x, dim, keepdim, dtype)
        # A count of true elements: exact in float32, and faster than in integers.
        true: Any = op.Cast(cast.inputs[0], to=DataType.FLOAT)
        axes: Any = op.Constant(value_ints=dim)
        counted: Any = op.ReduceSum(true, axes, keepdims=keepdim)
        return op.Cast(counted, to=DataType.INT64)

    return {
        torch.ops.aten.sum.dim_IntList: total,
        torch.ops.aten.cummax.default: cummax,
        torch.ops.aten.where.self: where,
        torch.ops.aten.pow.Tensor_Scalar: power,
    }
