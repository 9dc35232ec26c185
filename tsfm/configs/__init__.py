"""Configs that ship, in YAML. Each has a name that works from any folder: ``itransformer/ETTh1``, for instance."""

import difflib
from pathlib import Path

from tsfm_data.errors import InputError

__all__ = ["CONFIG_FOLDER", "config_names", "config_path"]
CONFIG_FOLDER = Path(__file__).resolve().parent


def config_names() -> list[str]:
    """The names of all configs that ship."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in CONFIG_FOLDER.glob("*/*.yaml"))


def config_path(name: str | Path, folder: Path = Path()) -> Path:
    """The file of a config.

    Args:
        name: a file, or the name of a config that ships; a name may begin with ``configs/`` and end in ``.yaml``.
        folder: where a relative path of a file starts.

    Raises:
        InputError: neither; near names are listed.
    """
    path = folder / name
    if path.is_file():
        return path
    plain, names = Path(name).as_posix().removeprefix("configs/").removesuffix(".yaml"), config_names()
    if plain in names:
        return CONFIG_FOLDER / f"{plain}.yaml"
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.yaml")], cutoff=0.5)
    near += [known for known in names if known.split("/")[-1] == plain.split("/")[-1]]
    near += difflib.get_close_matches(plain, names, cutoff=0.5)
    hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "tsfm configs list shows the names"
    kind = "a folder" if path.is_dir() else "nothing"
    raise InputError(f"expected a YAML config file or the name of a config, found {kind} at {path}: {hint}")
