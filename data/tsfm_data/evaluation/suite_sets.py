"""The sets of a suite, their profiles, and the published results to which they correspond.

Horizons, seasons and windows come from ``profiles``: the published ones if a benchmark has the set, else those of the
benchmark's sets of the same frequency. The competition sets (M3, M4) keep their competition's horizon and its one
window under both profiles.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.evaluation.evaluator import pool
from tsfm_data.evaluation.profiles import PROFILES, Profile
from tsfm_data.io import SeriesSet, catalog

SHORT = ("gift", "chronos")
TERMS = ("gift", "gift-medium", "gift-long")
ALL_PROFILES = (*TERMS, "chronos")


@dataclass(frozen=True)
class SuiteSet:
    """One set of a suite.

    Attributes:
        name: in reports; profiles look up horizon and season by it.
        sources: data sets of the catalogue; several are pooled into one.
        profiles: names of the profiles that score it.
        items: range ``[first, last)`` of its series in the sources; None means all.
        freq: frequency of all series, if the timestamps of the file are nominal; None keeps that of the file.
        published: profile -> its entry in the table of published results.
    """

    name: str
    sources: tuple[str, ...]
    profiles: tuple[str, ...] = SHORT
    items: tuple[int, int] | None = None
    freq: str | None = None
    published: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """The sources whose files are not available."""
        return [name for name in self.sources if catalog.local_file(catalog.get(name)) is None]

    def load(self) -> SeriesSet:
        """Load the series; every variate becomes a univariate series.

        Raises:
            InputError: as ``catalog.load``.
        """
        series = pool(self.name, [catalog.load(name) for name in self.sources])
        if self.items is not None:
            series = series.select(range(*self.items))
        return series if self.freq is None else replace(series, freqs=(self.freq,) * len(series))

    def digest(self, profile: Profile, freq: str, extra: Sequence[str] = ()) -> str:
        """Digest of everything that determines the forecasts under a profile and their scale; metrics do not change it.

        Args:
            profile: the protocol.
            freq: frequency of the series, which determines horizon and season.
            extra: anything else that changes the forecasts, such as the version of a library.
        """
        content = [catalog.get(name).sha256 for name in self.sources]
        windows = (profile.windows, profile.univariate, profile.context, profile.horizon(self.name, freq))
        scale = (profile.season(self.name, freq), profile.standardise, profile.naive_intervals, profile.levels)
        work = (content, self.name, self.items, freq, windows, scale, *extra)
        return hashlib.sha256(repr(work).encode()).hexdigest()[:16]


def _gift(name: str, entry: str, terms: Sequence[str] = TERMS) -> SuiteSet:
    """A set of GIFT-Eval that the Chronos benchmark lacks or only pools with others."""
    published = {profile: f"gift:{entry}/{_term(profile)}" for profile in terms}
    return SuiteSet(name, (name,), tuple(terms), published=published)


def _term(profile: str) -> str:
    return profile.removeprefix("gift-") if profile != "gift" else "short"


def _plain(name: str, gift: str | None = None, chronos: str | None = None) -> SuiteSet:
    """A set under both profiles."""
    published = {"gift": f"gift:{gift}/short"} if gift else {}
    return SuiteSet(name, (name,), published=published | ({"chronos": chronos} if chronos else {}))


def _m3(kind: str, first: int, last: int, freq: str, published: bool = True) -> SuiteSet:
    entry = {"chronos": f"monash_m3_{kind}"} if published else {}
    return SuiteSet(f"m3_{kind}", ("m3",), items=(first, last), freq=freq, published=entry)


BENCH = (
    _gift("ETTh1", "ett1/H"),
    _gift("ETTh2", "ett2/H"),
    _gift("ETTm1", "ett1/15T"),
    _gift("ETTm2", "ett2/15T"),
    SuiteSet("ETTh", ("ETTh1", "ETTh2"), ("chronos",), published={"chronos": "ETTh"}),
    SuiteSet("ETTm", ("ETTm1", "ETTm2"), ("chronos",), published={"chronos": "ETTm"}),
    replace(_gift("weather", "jena_weather/10T"), profiles=ALL_PROFILES),
    _plain("exchange_rate", chronos="exchange_rate"),
    _plain("national_illness"),
    _m3("yearly", 0, 645, "YS"),
    _m3("quarterly", 645, 1401, "QS"),
    _m3("monthly", 1401, 2829, "MS"),
    _m3("other", 2829, 3003, "D", published=False),
    _plain("m4_hourly", "m4_hourly/H", "m4_hourly"),
    _plain("m4_weekly", "m4_weekly/W", "m4_weekly"),
    _plain("m4_daily_sample"),
    _plain("m4_monthly_sample"),
    _plain("m4_quarterly_sample"),
    _plain("m4_yearly_sample"),
    _plain("nn5", chronos="nn5"),
    _plain("hospital", "hospital/M", "monash_hospital"),
    _plain("saugeen_river", "saugeen/D"),
    _plain("solar_weekly", "solar/W"),
    _plain("sunspot"),
    _plain("us_births", "us_births/D"),
    _plain("vehicle_trips"),
    _plain("car_parts", "car_parts/M", "monash_car_parts"),
    _plain("chickenpox_hungary"),
)
SUITES: Mapping[str, tuple[SuiteSet, ...]] = {"bench": BENCH}


def suite_profile(name: str) -> Profile:
    """A profile with the coverage of each of its quantile levels as additional metrics."""
    profile = PROFILES[name]
    return replace(profile, metrics={**profile.metrics, **{coverage(q): coverage(q) for q in profile.levels}})


def coverage(level: float) -> str:
    """Name of the metric for the share of true values below a quantile."""
    return f"coverage[{level:g}]"


def choose(suite: str, profiles: Sequence[str], sets: Sequence[str] | None = None) -> list[SuiteSet]:
    """The sets of a suite scored by any of the profiles, in the order of ``sets``, else of the suite.

    Args:
        suite: name of the suite.
        profiles: names of profiles.
        sets: names of sets; None means all.

    Raises:
        InputError: no such suite, set or profile, or no set is left.
    """
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    known = {suite_set.name: suite_set for suite_set in SUITES[suite]}
    for name in sets or ():
        if name not in known:
            raise unknown_name(f"set of suite {suite!r}", name, known)
    allowed = sorted({profile for suite_set in known.values() for profile in suite_set.profiles})
    for profile in profiles:
        if profile not in allowed:
            raise unknown_name(f"profile of suite {suite!r}", profile, allowed)
    chosen = [
        replace(suite_set, profiles=tuple(p for p in profiles if p in suite_set.profiles))
        for suite_set in map(known.__getitem__, dict.fromkeys(sets or known))
    ]
    chosen = [suite_set for suite_set in chosen if suite_set.profiles]
    if not chosen:
        raise InputError(f"suite {suite!r}: expected sets with profile {', '.join(profiles)}, found none: give others")
    return chosen
