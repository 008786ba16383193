"""Where a project is, and the settings in force there.

`.mlx/` marks a project's root. What must survive `git clean -fdx` and be shared by every worktree (cache, state index,
run logs) lives in `<git common dir>/mlx`. `Project` is a bundle of facts; the verbs are in the other modules.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from mlops_cli import files
from mlops_cli.errors import UsageError
from mlops_cli.hashing import fingerprint
from mlops_cli.records import config as settings
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.caches import is_url, open_cache
from mlops_cli.store.guard import Guard
from mlops_cli.store.links import LinkMode
from mlops_cli.store.objects import Durability
from mlops_cli.workspace.clients import register
from mlops_cli.workspace.git import Checkout, find_checkout, is_bare

CONFIG = ".mlx/config.yaml"
_LONGEST_NAME = 200  # bytes; file systems take 255, and suffixes follow


class Project:
    """A project's place on disk and its settings; nobody changes them."""

    def __init__(self, root: Path, git: Checkout, layers: tuple[settings.Layer, ...], config: settings.Config) -> None:
        self.root = root
        self.git = git
        self.layers = layers
        self.config = config

    @property
    def prefix(self) -> str:
        """The root relative to the top of the Git checkout, posix, empty when they are the same."""
        relative = self.root.relative_to(self.git.top).as_posix()
        return "" if relative == "." else relative

    @property
    def local(self) -> Path:
        """The folder of this clone's uncommitted things, shared by its worktrees."""
        return self.git.common_dir / "mlx"

    @cached_property
    def cache(self) -> Cache:
        """The store that files of the workspace come from; one object, since it remembers what it has looked up."""
        place = self.config.cache_dir
        if is_url(place) and (other := self.config.remotes[settings.CACHE_REMOTE].url) != place:
            raise UsageError(
                f"a remote is called `cache`, which is what the cache behind `{place}` is called as a remote",
                hint=f"give it another name: `mlx remote remove cache`, `mlx remote add NAME {other}`",
            )
        return open_cache(
            place,
            name=settings.CACHE_REMOTE,
            root=self.root,
            inside=self.local / "cache",
            kept=self.local / "remotes" / fingerprint(str(place)),
            link=LinkMode(self.config.cache_link),
            link_origin=next((layer.origin for layer in self.layers if "cache.link" in layer.values), ""),
            durability=Durability(self.config.core_durability),
            announce=self._announce,
        )

    def _announce(self, bucket: Bucket, url: str) -> None:
        # Only who sends to a cache behind a URL needs to know what Git says of commits.
        from mlops_cli.workspace.remote_note import leave_note  # noqa: PLC0415

        leave_note(self.git, self.local, bucket, url)

    @cached_property
    def guard(self) -> Guard:
        """What keeps `mlx gc` out while this process stores, or relies on, what no record may name yet.

        Whoever takes it uses the cache: a cache that other clones may use too is told of this project.
        """

        def entered() -> None:
            self.cache.packs.forget()
            register(self.cache, self.root, self.git.common_dir)

        return Guard(self.cache.root, timeout=self.config.core_lock_timeout, entered=entered)

    @property
    def checkout_key(self) -> str:
        """A file name that tells this project in this worktree from the clone's others."""
        worktree = f"worktree:{self.git.name}" if self.git.name else "main"
        return file_name(f"{worktree}/{self.prefix}" if self.prefix else worktree)

    @property
    def journal(self) -> Path:
        """The folder that says, while a stage runs, what its outputs were before."""
        return self.local / "journal" / self.checkout_key

    def relative(self, path: Path) -> str:
        """Return `path` (absolute) relative to the root, posix; UsageError when it lies outside."""
        for place in (path, Path(os.path.realpath(path.parent)) / path.name, Path(os.path.realpath(path))):
            if place.is_relative_to(self.root):
                relative = place.relative_to(self.root).as_posix()
                return "" if relative == "." else relative
        hint = "copy or move it into the project first"
        raise UsageError(f"`{path}` is outside the project `{self.root}`", hint=hint)

    @contextmanager
    def lock(self, doing: str, *, timeout: float | None = None) -> Iterator[bool]:
        """Hold this checkout against other mlx commands that write it.

        LockedError after `timeout` seconds (None: `core.lock_timeout`).

        Yields whether the holder before may have been killed: one that ends well leaves an empty lock file.
        """
        path = self.local / "locks" / f"{self.checkout_key}.lock"
        cut_short = path.is_file() and path.stat().st_size > 0
        with files.hold_lock(path, doing=doing, timeout=self.config.core_lock_timeout if timeout is None else timeout):
            yield cut_short

    @contextmanager
    def editing(self, doing: str) -> Iterator[None]:
        """Hold the files that commands edit for people (settings, `mlx.yaml`); a run that is on does not hold them."""
        path = self.local / "locks" / "editing.lock"
        with files.hold_lock(path, doing=doing, timeout=self.config.core_lock_timeout):
            yield


def file_name(text: str) -> str:
    """Return a name for a file that tells `text` from any other text, readable and not too long for a file system."""
    name = text.replace("%", "%25").replace("/", "%2F").replace(":", "%3A")
    return name if len(os.fsencode(name)) <= _LONGEST_NAME else f"{name[:40]}-{fingerprint(text)}"


def find_project(start: Path, environ: Mapping[str, str]) -> Project:
    """Return the project that holds the folder `start`; UsageError when there is none."""
    checkout = find_checkout(start)
    if checkout is None:
        raise _no_checkout(start, "`git init && mlx init` makes a project here")
    root = find_root(start, checkout)
    if root is not None:
        return load_project(root, checkout, environ)
    raise UsageError(f"no mlx project in `{start}` or above it", hint="`mlx init` makes one here")


def find_root(start: Path, checkout: Checkout) -> Path | None:
    """Return the root of the innermost project that holds `start`, a folder of `checkout`; None when none does."""
    for folder in (start, *start.parents):
        if (folder / ".mlx").is_dir():
            return folder
        if folder == checkout.top:
            break
    return None


def find_outer(project: Project) -> Path | None:
    """Return the root of the project that `project` lies inside of, and that sees nothing below its root."""
    top = project.git.top
    return None if project.root == top else find_root(project.root.parent, project.git)


def _no_checkout(folder: Path, hint: str) -> UsageError:
    if is_bare(folder):
        return UsageError(
            f"`{folder}` is in a bare Git repository, which has no files checked out",
            hint="`git clone` it, and work in the clone",
        )
    return UsageError(f"`{folder}` is not in a Git repository", hint=hint)


def load_project(root: Path, checkout: Checkout, environ: Mapping[str, str]) -> Project:
    """Return the project at `root` with its settings resolved from every level."""
    layers = tuple(_read_layers(root, checkout, environ))
    return Project(root, checkout, layers, settings.resolve(layers))


def config_files(root: Path, checkout: Checkout, environ: Mapping[str, str]) -> dict[str, Path]:
    """Return the file of each level that `mlx config` can write: `clone`, `project`, `user`, strongest first."""
    home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".config")
    return {
        "clone": checkout.common_dir / "mlx" / "config.yaml",
        "project": root / CONFIG,
        "user": Path(home) / "mlx" / "config.yaml",
    }


def _read_layers(root: Path, checkout: Checkout, environ: Mapping[str, str]) -> Iterator[settings.Layer]:
    yield settings.environment_layer(environ)
    for level, path in config_files(root, checkout, environ).items():
        name = CONFIG if level == "project" else str(path)
        values = settings.read_config(path.read_bytes(), name) if path.is_file() else {}
        yield settings.Layer(f"{level} ({name})", values)


def init_project(folder: Path, environ: Mapping[str, str], *, dry_run: bool = False) -> tuple[Project, bool]:
    """Make `folder` a project; returns it and whether anything was created (False: it was one already).

    A dry run returns what it would be, and writes nothing.
    """
    checkout = find_checkout(folder)
    if checkout is None:
        raise _no_checkout(folder, "run `git init` first")
    created = not (folder / CONFIG).is_file()
    if created and not dry_run:
        (folder / ".mlx").mkdir(exist_ok=True)
        files.write_atomic(folder / CONFIG, settings.write_config({}))
    if not dry_run:
        (checkout.common_dir / "mlx").mkdir(exist_ok=True)
    return load_project(folder, checkout, environ), created


def resolve_targets(project: Project, cwd: Path, targets: Sequence[str]) -> tuple[str, ...]:
    """Return each target, given relative to `cwd`, as a project path; links on the way are not followed."""
    return tuple(project.relative(Path(_normal(cwd / target))) for target in targets)


def _normal(path: Path) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts[1:] and parts.pop()
        elif part != ".":
            parts.append(part)
    return str(Path(*parts))
