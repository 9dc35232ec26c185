"""``tsfm configs``: lists, shows and copies the configs that ship with the package."""

import shutil
import textwrap
from pathlib import Path

from tsfm.configs import CONFIG_FOLDER, config_names, config_path
from tsfm_data.io import atomic_file, check_new
from tsfm_data.output import note


def list_() -> None:
    """List the configs that ship with the package, with the first line of each; tsfm configs show NAME prints one."""
    names = config_names()
    width = max(map(len, names))
    for name in names:
        first = (CONFIG_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{name:<{width}}  {textwrap.shorten(first, 100 - width - 2, placeholder=' ...')}")
    note("tsfm configs show NAME prints one, with the command that runs it.")


def show(name: str) -> None:
    """Print a config; its first lines describe it and give the command that runs it.

    Args:
        name: name of a config, such as itransformer/ETTh1, or a file.

    Raises:
        InputError: no such config; similar names are listed.
    """
    print(config_path(name).read_text(encoding="utf-8"), end="")


def copy(name: str, *, output: Path | None = None, overwrite: bool = False) -> None:
    """Copy a config to a file that you can change.

    Args:
        name: name of a config, such as itransformer/ETTh1.
        output: file to write; by default a file with the config's name in the current folder.
        overwrite: replace an existing output.

    Raises:
        InputError: no such config, or the file exists.
    """
    source = config_path(name)
    target = output or Path(source.name)
    check_new([target], overwrite, [source])
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)
    print(target)
