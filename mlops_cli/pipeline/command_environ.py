"""The environment of a stage's commands: what they inherit of the one that mlx runs in, and what the stage sets."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from mlops_cli.records.stages import Stage

# What a command cannot well do without: where programs, files of the user's and scratch space are, and in which words
# and what time zone to tell things. None of them should decide what comes out.
ALWAYS_PASSED = ("HOME", "LANG", "LANGUAGE", "LC_*", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")


def command_environ(stage: Stage, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the commands of `stage`, when mlx runs in `environ`.

    All of that is inherited, unless the stage says what to pass: then the little that is always passed, and that.
    """
    inherited = environ if stage.pass_env is None else _passed(environ, (*ALWAYS_PASSED, *stage.pass_env))
    return {"PYTHONUNBUFFERED": "1", **inherited, **dict(stage.env)}


def _passed(environ: Mapping[str, str], patterns: tuple[str, ...]) -> dict[str, str]:
    exact = {pattern for pattern in patterns if "*" not in pattern}
    globs = [pattern.replace("[", "[[]").replace("?", "[?]") for pattern in patterns if "*" in pattern]
    return {
        name: value
        for name, value in environ.items()
        if name in exact or any(fnmatchcase(name, pattern) for pattern in globs)
    }
