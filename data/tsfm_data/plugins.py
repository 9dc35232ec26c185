"""What other packages add to the suite: the entry points of a group."""

from importlib import metadata


def entry_points(group: str) -> list[metadata.EntryPoint]:
    """The entry points of a group, one per name, sorted by name; nothing is imported.

    Args:
        group: for instance ``tsfm.models``.
    """
    return sorted({entry.name: entry for entry in metadata.entry_points(group=group)}.values(), key=lambda e: e.name)
