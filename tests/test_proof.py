"""PROOF.md is made of the pages of the benchmarks."""

import proof


def test_when_a_page_changes_then_the_proof_is_written_again() -> None:
    assert (proof.FOLDER.parent / "PROOF.md").read_text(encoding="utf-8") == proof.text()
