"""Puts tiny backbones through what PyTorch makes of a model, and prints a line for each: name, step, and the difference
from the model in shares of its largest output, or the error.

Run by a test in a process of its own, because nothing can trace the checks of shapes in tests.
"""

import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tiny_backbones import SMALL, create, image
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.utils.flop_counter import FlopCounterMode

BATCH = {0: torch.export.Dim("batch", min=1, max=64)}


def exported(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """By torch.export with gradients, for any number of images."""
    return torch.export.export(model, (image(),), dynamic_shapes=(BATCH,), strict=False).module()


def onnx(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """By ONNX Runtime, for any number of images."""
    import onnxruntime

    file = io.BytesIO()
    program = torch.onnx.export(model, (image(),), dynamo=True, dynamic_shapes=(BATCH,), verbose=False)
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """As one graph of decomposed operations, without generated code.

    Plain "aot_eager" fails for a group norm of a channels-last map: PyTorch takes its output to be contiguous.
    """
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager_decomp_partition", fullgraph=True)


def trained(model: nn.Module) -> Tensor:
    """Gradients of a compiled model, all in a row."""
    gradients = []
    for run in (model, compiled(model)):
        model.zero_grad()
        run(image()).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return gradients[1] - gradients[0]


def twice(model: nn.Module) -> Tensor:
    """Error of the second derivative along a line, compared with a difference of first ones."""
    model = model.double()
    x, line = image().double(), 1e-5 * image(batch=2).double().flip(0)

    def first(y: Tensor) -> Tensor:
        return torch.autograd.grad(model(y).square().sum(), y, create_graph=True)[0]

    y = x.clone().requires_grad_()
    (second,) = torch.autograd.grad((first(y) * line).sum(), y)
    ahead, back = (first((x + sign * line).requires_grad_()) for sign in (1, -1))
    difference = (ahead - back) / 2
    return (second - difference) / difference.abs().amax()


def quantised(model: nn.Module) -> Tensor:
    """Linear layers that are left after dynamic quantisation."""
    small = quantize_dynamic(model, {nn.Linear})
    small(image())
    return torch.tensor([float(sum(isinstance(module, nn.Linear) for module in small.modules()))])


def counted(model: nn.Module) -> Tensor:
    """Difference of the floating-point operations counted with and without gradients, as a share."""
    counts = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            model(image())
        counts.append(float(counter.get_total_flops()))
    return torch.tensor([counts[1] / counts[0] - 1])


def mapped(model: nn.Module) -> Tensor:
    """Error of ``torch.vmap``."""
    return torch.vmap(lambda x: model(x[None])[0])(image()) - model(image())


def empty(model: nn.Module) -> Tensor:
    """Outputs of no image."""
    assert model(image()[:0]).shape == (0, 10)
    return torch.zeros(1)


STEPS: dict[str, Callable[[nn.Module], Any]] = {
    "export": exported,
    "onnx": onnx,
    "compile": compiled,
    "compile, training": trained,
    "second derivative": twice,
    "quantise": quantised,
    "count": counted,
    "vmap": mapped,
    "no image": empty,
}


def main(names: list[str], steps: list[str]) -> None:
    """One line for each model and step, with tabs between."""
    warnings.simplefilter("ignore")
    for name in names or SMALL:
        for step in steps or STEPS:
            model = create(name)
            try:
                made = STEPS[step](model)
                if not isinstance(made, Tensor):
                    x = image(batch=3)
                    with torch.no_grad():
                        expected = model(x)
                        made = (made(x) - expected) / expected.abs().amax()
                said = str(float(made.abs().amax()))
            except Exception as error:
                said = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
            print(name, step, said, sep="\t", flush=True)


if __name__ == "__main__":
    chosen = sys.argv[1:]
    main([word for word in chosen if word in SMALL], [word for word in chosen if word in STEPS])
