"""What of a dependency counts, when not every byte does; how it is worked out is `normal_forms`'s."""

from __future__ import annotations

from enum import StrEnum


class Normalizer(StrEnum):
    """A way to see a file in which some edits are no change."""

    PYTHON = "python-ast"
    NOTEBOOK = "notebook"

    @property
    def suffix(self) -> str:
        """How the names of the files end that it applies to in folders and globs."""
        return ".py" if self is Normalizer.PYTHON else ".ipynb"

    @property
    def passed_over(self) -> str:
        """What does not count."""
        return "comments and formatting" if self is Normalizer.PYTHON else "outputs and metadata"
