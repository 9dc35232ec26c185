"""Scores of the baselines on a suite, computed once and kept in the repository.

Run it by ``python benchmarks/baselines.py``.
"""

from pathlib import Path

from common import run

from tsfm_data.errors import InputError, unknown_name
from tsfm_data.evaluation import ALL_PROFILES, BASELINES, available_sets, choose, kept_baselines, score_sets

OURS = Path(__file__).resolve().parents[1] / "data" / "tsfm_data" / "evaluation" / "baselines.json"


def main(
    *,
    suite: str = "bench",
    models: list[str] | None = None,
    profiles: list[str] | None = None,
    sets: list[str] | None = None,
    output: Path | None = None,
    jobs: int = 1,
) -> None:
    """Score naive, seasonal naive, AutoETS and AutoTheta on a suite and keep the scores for later evaluations.

    Kept scores are used again as long as the data, the protocol and the version of statsforecast are the same.

    Args:
        suite: name of the suite.
        models: baselines; by default naive, seasonal-naive, auto-ets and auto-theta.
        profiles: protocols; by default all that the suite has.
        sets: sets of the suite; by default all whose files are in the data folder.
        output: file of the scores; by default the one of this checkout, which ships with the package.
        jobs: processes at the same time, one thread each.
    """
    for name in models or ():
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
    if jobs < 1:
        raise InputError(f"jobs: expected at least 1 process, found {jobs}")
    file = output or OURS
    chosen, notes = available_sets(suite, choose(suite, profiles or ALL_PROFILES, sets))
    print(*notes, sep="\n")
    for name in models or BASELINES:
        predictor = BASELINES[name]()
        for suite_set, rows, seconds in score_sets(predictor, chosen, jobs=jobs, baseline_file=file):
            kept_baselines.save_rows(predictor, suite_set, rows, file)
            print(f"{name:15} {suite_set.name:20} {' '.join(suite_set.profiles):35} {seconds:8.1f} s", flush=True)
    print(f"{file}: {len(kept_baselines.cells(file))} scores")


if __name__ == "__main__":
    run(main)
