"""What a stage's command takes of the machine, and how long and how often it is tried.

None of it is an input: it says nothing of what the outputs will be.
"""

from __future__ import annotations

from typing import NamedTuple

CPUS, MEMORY = "cpus", "memory"


class Conduct(NamedTuple):
    """What a stage takes of each resource, which groups it has to itself, and how it is tried.

    `resources` maps `cpus` to a number, `memory` to bytes and any other name to a number of what `resources` of a
    pipeline has. `timeout` and `delay` are in seconds; after a failure there are `retries` more attempts.
    """

    resources: tuple[tuple[str, float], ...] = ()
    mutex: tuple[str, ...] = ()
    timeout: float | None = None
    retries: int = 0
    delay: float = 0.0


PLAIN = Conduct()
