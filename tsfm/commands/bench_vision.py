"""``tsfm bench vision``: the image backbones beside timm's and beside the reference arithmetic."""

from pathlib import Path

from tsfm.commands.bench import write
from tsfm_data.errors import InputError, unknown_name


def vision(
    cases: list[str] | None = None, output: Path = Path("benchmarks"), repeats: int = 7, threads: int = 1
) -> None:
    """Time inference and training of the image backbones side by side with timm's or the reference; measure memory.

    Args:
        cases: which, for instance tnt or biformer-memory; all by default.
        output: folder for vision.md and vision.json.
        repeats: rounds of both sides in turn; the median of the ratios counts.
        threads: CPU threads.
    """
    from tsfm.commands.image import vision as package

    if repeats < 1 or threads < 1:
        raise InputError(f"expected repeats and threads of at least 1, found {repeats} and {threads}: change them")
    speed = package("speed")
    for name in cases or []:
        if name not in speed.CASES:
            raise unknown_name("case", name, speed.CASES)
    rows = speed.table(cases or list(speed.CASES), repeats, threads)
    chosen = [f"--cases {' '.join(cases)}"] if cases else []
    command = " ".join(["tsfm bench vision", *chosen, f"--repeats {repeats} --threads {threads}"])
    write(output, "vision", rows, {"command": command}, speed.page(rows, repeats, threads, command))
