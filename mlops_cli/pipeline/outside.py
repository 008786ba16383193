"""What stages take from outside the project: the versions of URLs, and the environment that their commands run in.

Nothing is downloaded. Each URL is asked for once in a run, several at once, and once more after the commands of a stage
that reads it have run. Where nobody is to be asked, what a stage's lock recorded counts, and the decision says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mlops_cli.errors import MlxError, RemoteError, UsageError
from mlops_cli.pipeline.interpreter import Python
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.records.environment import NOTHING, UNSAID, Difference, EnvironmentRecord, PythonPart, differences
from mlops_cli.records.locks import Lock
from mlops_cli.records.stages import Stage
from mlops_cli.records.urls import UrlInput
from mlops_cli.store.parallel import map_bounded

_AT_ONCE = 8
_PATIENCE = 10.0  # s for which a place that fails is tried again: a run waits for the answer
_SILENCE = 10.0  # s after which a web server that sends nothing is given up; it is to send no more than a few lines


class Urls(NamedTuple):
    """The URLs that a stage reads; those that are `unasked` are as its lock recorded them, if it did."""

    inputs: tuple[UrlInput, ...] = ()
    unasked: tuple[str, ...] = ()


_NO_URLS = Urls()


class Outside:
    """Answers, for one command, what the URLs of stages are, and what their environment is.

    With `ask` the places of URLs tell, else the locks; of the environment `python` does, else the locks. For a stage
    that is frozen, its lock does in any case, unless `frozen_too`. `note` hears of a place that does not answer for a
    while.
    """

    def __init__(
        self,
        *,
        ask: bool = False,
        note: Callable[[str], None] = lambda _: None,
        python: Python | None = None,
        patience: float = _PATIENCE,
        frozen_too: bool = False,
    ) -> None:
        self._frozen_too = frozen_too
        self._patience = patience
        self._python = python
        self._asks = ask
        self._note = note
        self._told: dict[str, UrlInput | MlxError] = {}

    def prepare(self, stages: Iterable[Stage]) -> None:
        """Ask for every URL that `stages` read, several at once; what went wrong is raised when it is needed."""
        if self._asks:
            urls = dict.fromkeys(
                url for stage in stages for url in stage.urls if self._tells(stage) and url not in self._told
            )
            self._ask(tuple(urls))

    def urls(self, stage: Stage, lock: Lock | None) -> Urls:
        """Return what the URLs of `stage` are, whose lock is `lock`; RemoteError where there is no answer."""
        if not stage.urls:
            return _NO_URLS
        if not self._asks or not self._tells(stage):
            recorded = {entry.url: entry for entry in lock.urls} if lock else {}
            return Urls(tuple(recorded[url] for url in stage.urls if url in recorded), stage.urls)
        self.prepare([stage])
        return Urls(tuple(self._answer(url, stage) for url in stage.urls))

    def environment(self, stage: Stage, lock: Lock | None) -> EnvironmentRecord:
        """Return what `stage`, whose lock is `lock`, declares of the environment; UsageError when it is not there."""
        declared = stage.environment
        if declared == UNSAID:
            return NOTHING
        if self._python is None or not self._tells(stage):
            return lock.environment if lock else NOTHING
        version = self._python.version() if declared.python else ""
        if declared.python is PythonPart.MINOR:
            version = _minor(version)
        packages = tuple(sorted((name, self._package(self._python, name, stage)) for name in declared.packages or ()))
        return EnvironmentRecord(version, packages, declared.image or "")

    def differences(self, recorded: EnvironmentRecord) -> list[Difference]:
        """Return in what today's environment differs from a lock's, as far as that says; None: it is not there.

        An image cannot be looked at: it counts as what was recorded.
        """
        python = self._python
        if python is None or not (recorded.python or recorded.packages):
            return []
        try:
            version = python.version()
            found = ((name, python.package(name)) for name, _ in recorded.packages)
            packages = tuple((name, there) for name, there in found if there is not None)
        except UsageError:  # there is no interpreter
            return differences(recorded, EnvironmentRecord(image=recorded.image))
        if recorded.python.count(".") < 2:
            version = _minor(version)
        return differences(recorded, EnvironmentRecord(version if recorded.python else "", packages, recorded.image))

    def _package(self, python: Python, name: str, stage: Stage) -> str:
        version = python.package(name)
        if version is None:
            hint = f"install it, or activate the environment that has it; `environment` is in {stage.file}"
            raise UsageError(f"`environment` names the package `{name}`, which {python} does not have", hint=hint)
        return version

    def changed(self, stage: Stage, before: Iterable[UrlInput]) -> tuple[str, ...]:
        """Return those of the URLs that a stage read that are not what they were `before`, or do not answer now.

        Its commands may have installed something: the environment is looked at anew when next asked for.
        """
        if self._python is not None:
            self._python.look_anew()
        old = {entry.url: entry.etag for entry in before}
        if not old or not self._asks:
            return ()
        for url in old:
            self._told.pop(url, None)
        self.prepare([stage])
        changed = []
        for url, etag in sorted(old.items()):
            now = self._told[url]
            if isinstance(now, MlxError):
                del self._told[url]  # the next stage asks again
                self._note(f"`{url}` does not answer any more: {now.message}")
            if isinstance(now, MlxError) or now.etag != etag:
                changed.append(url)
        return tuple(changed)

    def _tells(self, stage: Stage) -> bool:
        """Say whether what is there now matters for a stage, not only what its lock says."""
        return not stage.is_off and (self._frozen_too or not stage.frozen)

    def _answer(self, url: str, stage: Stage) -> UrlInput:
        found = self._told[url]
        if isinstance(found, UrlInput):
            return found
        hint = (
            f"{found.marked_hint}; `--offline` takes what the lock records, where nothing else changed"
            if found.marked_hint
            else None
        )
        kind = UsageError if isinstance(found, UsageError) else RemoteError
        what = "" if f"`{url}`" in found.message else f" reads `{url}`"
        raise kind(f"stage `{stage.address}`{what}: {found.message}", hint=hint) from found

    def _ask(self, urls: Sequence[str]) -> None:
        answers = map_bounded(self._look, urls, min(_AT_ONCE, len(urls)))
        self._told |= zip(urls, answers, strict=True)

    def _look(self, url: str) -> UrlInput | MlxError:
        from mlops_cli.store.place import Place  # noqa: PLC0415 - 10 ms that runs without URLs save

        try:
            place = Place(url, patience=self._patience, silence=_SILENCE)
            place.bucket.label = "its dependency"
            place.bucket.traffic.listener = self._note
            found = place.look()
        except MlxError as error:
            return error
        return UrlInput(url, found.version, found.size)


AS_RECORDED = Outside()


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def refuse_unasked(decision: Decision) -> None:
    """Raise UsageError for a stage that is to run though nobody asked what its URLs are: no lock could tell."""
    stage, unasked = decision.stage, decision.wanted.unasked
    if unasked and decision.action is Action.RUN:
        raise UsageError(
            f"stage `{stage.address}` has to run, and what `{unasked[0]}` has now was not asked",
            hint="leave `--offline` out",
        )
