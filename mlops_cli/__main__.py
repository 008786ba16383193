"""`python -m mlops_cli` is `mlx`."""

from __future__ import annotations

from mlops_cli.cli.entry import entry

if __name__ == "__main__":
    entry()
