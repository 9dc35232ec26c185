"""The YAML that describes a corpus: checking it, and reading the series of each source in parts.

Every source has one of four keys:

    sources:
      - catalog: {role: train, licence_class: open}     # every matching set; or a name, or a pattern such as hier_*
        exclude: [m5_total]
      - path: sales/*.csv          # CSV, Parquet or Arrow tables, relative to the YAML; read one file at a time
        name: sales
        target: units
        freq: D
        licence_class: unstated    # the default; released weights are trained on "open" only
      - gluonts: datasets/m4       # a folder written by GluonTS
      - generator: gp              # synthetic series; "mixture" samples from all generators
        count: 20000
        length: 1024
        seed: 1

``weight`` is the source's share of the training windows (for each source, if a pattern matches several; for the default
see ``tsfm_data.corpus.building.shares``). ``name`` is its name in reports.
"""

import fnmatch
import itertools
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from typing_extensions import TypedDict

from tsfm_data.corpus.store import file_digest
from tsfm_data.errors import InputError, reason_of, shown, unknown_name
from tsfm_data.io import (
    SeriesSet,
    catalog,
    check_record,
    is_plain_name,
    normalise,
    open_parts,
    period_alias,
    read_record,
    read_series,
    read_yaml,
    step_of,
)
from tsfm_data.synthetic import GENERATORS, SyntheticMixture

TABLE_OPTIONS = ("time_column", "item_column", "target", "freq", "order")
COMMON = ("name", "weight", "licence", "licence_class")
KEYS: Mapping[str, tuple[str, ...]] = {
    "catalog": ("exclude", "weight"),
    "path": (*TABLE_OPTIONS, *COMMON),
    "gluonts": ("freq", *COMMON),
    "generator": ("count", "length", "seed", "freq", *COMMON),
}
# Whole numbers of a generator and their ranges; a part of a source is in memory at once.
SIZES = {"count": (1, 10**9), "length": (2, 10**5), "seed": (0, 2**63 - 1)}
FILTERS = ("role", "licence_class", "domain", "freq", "names")
GENERATED, ENTRIES = 256, 512  # series generated, and GluonTS entries read, at once


class SourceKeys(TypedDict, total=False):
    """Types of the keys of a source; ``weight`` and the sizes of a generator have checks of their own."""

    catalog: str | dict[str, str]
    exclude: list[str]
    path: str
    gluonts: str
    generator: str
    time_column: str
    item_column: str
    target: str | list[str]
    freq: str
    order: str
    name: str | int | float
    licence: str | int | float
    licence_class: str


@dataclass(frozen=True)
class Plan:
    """One source to build.

    Attributes:
        name: folder and name in reports.
        kind: "catalog", "path", "gluonts" or "generator".
        origin: data-set name, pattern, folder or generator, as written in the YAML.
        files: files to read, with digests; the source is rebuilt if they differ.
        options: other inputs that determine its content; the source is rebuilt if they differ.
        licence, licence_class, domain, groups: as in ``catalog.DatasetSpec``.
        share: the given weight, or None.
        paths: of the files.
    """

    name: str
    kind: str
    origin: str
    files: tuple[Mapping[str, str], ...]
    options: Mapping[str, Any]
    licence: str
    licence_class: str
    domain: str
    groups: tuple[str, ...]
    share: float | None
    paths: tuple[Path, ...] = ()

    def inputs(self) -> dict[str, Any]:
        """All inputs that determine the content of the source; the same inputs give the same bytes."""
        files = [dict(file) for file in self.files]
        return {"kind": self.kind, "origin": self.origin, "files": files, "options": dict(self.options)}

    def about(self) -> dict[str, Any]:
        """Other fields of the manifest entry."""
        return {
            "licence": self.licence,
            "licence_class": self.licence_class,
            "domain": self.domain,
            "groups": list(self.groups),
            "share": self.share,
        }

    def parts(self) -> Iterator[SeriesSet]:
        """Read the series in parts: one file, or a few hundred generated series or GluonTS entries, at a time."""
        if self.kind == "catalog":
            yield catalog.load(self.origin)
        elif self.kind == "path":
            for path in self.paths:
                yield from _table_parts(path, self.options)
        elif self.kind == "gluonts":
            yield from _gluonts_parts(self.paths[0], self.options["freq"])
        else:
            yield from _generate_parts(self.origin, self.options)


def read_plans(config: Path) -> list[Plan]:
    """Read a corpus YAML: resolve the files of its sources and compute their digests.

    Raises:
        InputError: no such file, invalid YAML, an unknown key, a missing source, a duplicate name, or a data set for
            evaluation.
    """
    entries = _entries(config)
    plans: list[Plan] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{config}, source {number}"
        kind = _kind(entry, where)
        check_record(entry, SourceKeys, where, "keys of a source", hint="correct it")
        try:
            plans += _PLANNERS[kind](entry, where, config.parent)
        except (OSError, ValueError, NotImplementedError) as error:  # the system does not take such a path
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{where}: expected a path that can be read, found another one ({reason_of(error)}): correct it"
            ) from error
    names: set[str] = set()
    for plan in plans:
        if plan.name.lower() in names:
            raise InputError(
                f"{config}: expected distinct source names, found {plan.name!r} twice; give one of them a "
                "name, or leave it out of a catalogue pattern with exclude"
            )
        names.add(plan.name.lower())
    return plans


def _entries(config: Path) -> list[dict[str, Any]]:
    if not config.is_file():
        raise InputError(f"{config}: no such file; expected a YAML that lists sources")
    content = read_yaml(config, "the key sources with a list")
    for key in content:
        if key != "sources":
            raise InputError(f"{config}: {unknown_name('key', str(key)[:60], ('sources',))}")
    entries = content.get("sources")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"{config}: expected sources as a list of one or more '- key: value' blocks, found {shown(entries)}"
        )
    return entries


def _kind(entry: dict[str, Any], where: str) -> str:
    kinds = [key for key in KEYS if key in entry]
    if len(kinds) != 1:
        for key in entry:
            if key not in itertools.chain(KEYS, *KEYS.values()):
                raise InputError(f"{where}: {unknown_name('key', str(key)[:60], KEYS)}")
        keys = ", ".join(kinds or map(str, entry))[:80] or "no key"
        raise InputError(f"{where}: expected one of {', '.join(KEYS)}, found {keys}")
    for key in entry:
        if key not in (kinds[0], *KEYS[kinds[0]]):
            raise InputError(f"{where}: {unknown_name('key', str(key)[:60], (kinds[0], *KEYS[kinds[0]]))}")
    share = entry.get("weight")
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < np.inf):
        raise InputError(f"{where}: expected weight as a positive number, found {shown(share)}")
    if share is not None:
        entry["weight"] = float(share)
    return kinds[0]


def _plan_catalog(entry: Mapping[str, Any], where: str, folder: Path) -> list[Plan]:
    chosen = _matching_names(entry["catalog"], where)
    excluded = entry.get("exclude", [])
    if not isinstance(excluded, list):
        raise InputError(f"{where}: expected exclude as a list of names, found {shown(excluded)}")
    for name in excluded:
        if name not in chosen:
            raise InputError(f"{where}, exclude: {unknown_name('data set', str(name), chosen)}")
    plans = []
    for name in chosen:
        if name in excluded:
            continue
        spec = catalog.get(name)
        path = catalog.pull(name)
        digest = spec.sha256 or file_digest(path)
        files = ({"file": spec.file, "sha256": digest},)
        options = {"without": list(spec.bench_series)} if spec.bench_series else {}
        about = (spec.licence, spec.licence_class, spec.domain, spec.groups, entry.get("weight"))
        plans.append(Plan(name, "catalog", name, files, options, *about))
    if not plans:
        raise InputError(f"{where}: expected data sets, found none that matches {entry['catalog']!r}")
    return plans


def _matching_names(wanted: Any, where: str) -> list[str]:
    """Names of the training sets that a catalogue entry selects."""
    if isinstance(wanted, str) and not set(wanted) & set("*?["):
        if catalog.get(wanted).role != "train":
            raise InputError(
                f"{where}: data set {wanted!r} is for evaluation (role {catalog.get(wanted).role}), not for "
                "pretraining; leave it out"
            )
        return [wanted]
    conditions = {"names": wanted} if isinstance(wanted, str) else wanted
    if not isinstance(conditions, dict):
        raise InputError(f"{where}: expected catalog as a name, a pattern or conditions, found {shown(wanted)}")
    for key in conditions:
        if key not in FILTERS:
            raise InputError(f"{where}, catalog: {unknown_name('key', str(key), FILTERS)}")
    if conditions.get("role", "train") != "train":
        raise InputError(
            f"{where}: expected role train, found {shown(conditions['role'])}: evaluation sets are not for pretraining"
        )
    licence = conditions.get("licence_class")
    if licence is not None and licence not in get_args(catalog.LicenceClass):
        raise InputError(f"{where}: {unknown_name('licence_class', str(licence), get_args(catalog.LicenceClass))}")
    pattern = str(conditions.get("names", "*"))
    filters = {key: value for key, value in conditions.items() if key not in ("names", "role")}
    return [
        name
        for name in catalog.names("train")
        if fnmatch.fnmatchcase(name, pattern)
        and all(getattr(catalog.get(name), key) == value for key, value in filters.items())
    ]


def _plan_path(entry: Mapping[str, Any], where: str, folder: Path) -> list[Plan]:
    pattern = str(entry["path"])
    expanded = Path(pattern).expanduser()
    if set(pattern) & set("*?["):
        base = Path(expanded.anchor) if expanded.is_absolute() else folder
        paths = sorted(path for path in base.glob(str(expanded.relative_to(expanded.anchor))) if path.is_file())
    else:
        paths = [path for path in (folder / expanded,) if path.is_file()]
    if not paths:
        raise InputError(
            f"{where}: expected a table at {folder / expanded}, found no file; correct path or leave it out"
        )
    files = [{"file": path.name, "sha256": file_digest(path)} for path in paths]
    for file in files:
        _refuse_evaluation(file["file"], file["sha256"], where)
    options = {key: entry[key] for key in TABLE_OPTIONS if key in entry}
    _check_freq(entry, where)
    name = entry.get("name") or expanded.name.split(".")[0].strip("*") or expanded.parent.name
    return [_source_plan(entry, where, str(name), "path", pattern, files, options, paths)]


def _table_parts(path: Path, options: Mapping[str, Any]) -> Iterator[SeriesSet]:
    """The series of a table, some at a time if it is large."""
    with tempfile.TemporaryDirectory() as name:
        parts = None if "order" in options else open_parts(path, Path(name) / "rows", own_hours=False, **options)
        if parts is None:
            yield read_series(path, own_hours=False, **options)
        else:
            yield from (part for part in parts if part is not None)


def _refuse_evaluation(file: str, digest: str, where: str) -> None:
    for name in catalog.names("bench"):
        if catalog.get(name).sha256 == digest:
            raise InputError(
                f"{where}: {file} is the file of data set {name!r}, which is for evaluation, not for pretraining; "
                "leave it out"
            )


def _plan_gluonts(entry: Mapping[str, Any], where: str, folder: Path) -> list[Plan]:
    path = folder / Path(str(entry["gluonts"])).expanduser()
    train = path / "train" if (path / "train").is_dir() else path
    inside = sorted(file for file in train.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not inside:
        raise InputError(f"{where}: expected a folder written by GluonTS at {path}, found none")
    freq = str(entry.get("freq") or _gluonts_freq(path, where))
    _check_freq({"freq": freq}, where)
    freq = period_alias(freq)
    files = [{"file": str(file.relative_to(train)), "sha256": file_digest(file)} for file in inside]
    name = str(entry.get("name") or path.name)
    return [_source_plan(entry, where, name, "gluonts", str(entry["gluonts"]), files, {"freq": freq}, [train])]


def _gluonts_freq(path: Path, where: str) -> str:
    file = next((f for f in (path / "metadata.json", path / "metadata" / "metadata.json") if f.is_file()), None)
    if file is None:
        raise InputError(f"{where}: expected metadata.json with the frequency in {path}, found none; give freq")
    content = read_record(file, dict, "metadata of GluonTS", hint="give freq")
    if not isinstance(content.get("freq"), str):
        raise InputError(f"{file}: expected JSON with the key freq, found something else; give freq")
    return content["freq"]


def _gluonts_parts(path: Path, freq: str) -> Iterator[SeriesSet]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a faster JSON library could be installed
        from gluonts.dataset.common import FileDataset
        from gluonts.exceptions import GluonTSException

    try:
        next(iter(FileDataset(path, freq=freq)), None)
        single = True
    except GluonTSException:  # targets of shape [V, T]; any other error is raised again below
        single = False
    entries = iter(FileDataset(path, freq=freq, one_dim_target=single))
    for number in itertools.count():
        try:
            part = list(itertools.islice(entries, ENTRIES))
        except (GluonTSException, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path}: expected a data set of GluonTS, found something else ({reason})") from error
        if not part:
            return
        yield read_series(part, name=f"{path}, part {number + 1}")


def _plan_generator(entry: Mapping[str, Any], where: str, folder: Path) -> list[Plan]:
    generator = str(entry["generator"])
    if generator != "mixture" and generator not in GENERATORS:
        raise InputError(f"{where}: {unknown_name('generator', generator, (*GENERATORS, 'mixture'))}")
    options: dict[str, Any] = {"seed": 0, "freq": "D"} | {
        key: entry[key] for key in ("count", "length", "seed", "freq") if key in entry
    }
    for key, (least, most) in SIZES.items():
        value = options.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{where}: expected {key} as a whole number of at least {least}, found {shown(value)}")
        if value > most:
            raise InputError(f"{where}: expected {key} of at most {most:,}, found {shown(value)}: lower it")
    _check_freq(options, where)
    name = str(entry.get("name") or generator)
    return [_source_plan(entry, where, name, "generator", generator, [], options, [])]


def _generate_parts(generator: str, options: Mapping[str, Any]) -> Iterator[SeriesSet]:
    generate = SyntheticMixture().sample if generator == "mixture" else GENERATORS[generator]
    for start in range(0, options["count"], GENERATED):
        rng = np.random.Generator(np.random.Philox(key=options["seed"], counter=[0, 0, 0, start]))
        values = generate(min(GENERATED, options["count"] - start), options["length"], rng)
        ids = [str(i) for i in range(start, start + len(values))]
        yield SeriesSet.from_arrays(generator, list(values), options["freq"], item_ids=ids)


def _check_freq(entry: Mapping[str, Any], where: str) -> None:
    if "freq" in entry:
        try:
            step_of(normalise(str(entry["freq"])))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def _source_plan(
    entry: Mapping[str, Any],
    where: str,
    name: str,
    kind: str,
    origin: str,
    files: list[dict[str, str]],
    options: Mapping[str, Any],
    paths: list[Path],
) -> Plan:
    """The plan of a source outside the catalogue; its licence is taken from the YAML."""
    if not is_plain_name(name):
        raise InputError(f"{where}: expected a name of letters, digits, '.', '_' and '-', found {name!r}; give name")
    synthetic = kind == "generator"
    licence_class = str(entry.get("licence_class", "open" if synthetic else "unstated"))
    if licence_class not in get_args(catalog.LicenceClass):
        raise InputError(f"{where}: {unknown_name('licence_class', licence_class, get_args(catalog.LicenceClass))}")
    licence = str(entry.get("licence", "generated" if synthetic else "unstated"))
    domain = "synthetic" if synthetic else "unstated"
    share = entry.get("weight")
    return Plan(name, kind, origin, tuple(files), options, licence, licence_class, domain, (), share, tuple(paths))


_PLANNERS = {"catalog": _plan_catalog, "path": _plan_path, "gluonts": _plan_gluonts, "generator": _plan_generator}
