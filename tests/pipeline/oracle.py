"""What `mlx run` has to do with a small pipeline, worked out without mlx: by dictionaries, and commands told in Python.

A `World` is a project: its files, its parameters and its stages. `World.run` answers with what each stage comes to, and
is afterwards as the project has to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SCRIPT = "lib.sh"  # a file that is run, where others are printed
OPTIONAL = "opt/x"
UNDECLARED = "outside"


@dataclass(frozen=True, slots=True)
class Spec:
    """Stage `sN`, which prints what it reads to `oN/out`, and with `extra` a word to `xN` too."""

    number: int
    text: str = "a"  # that its command has, and prints
    files: tuple[str, ...] = ()
    above: tuple[int, ...] = ()  # the stages of which it reads `oN/out`
    beside: tuple[int, ...] = ()  # the stages of which it reads `xN`
    by_folder: bool = False  # whether its dependencies are folders and globs
    value: str = ""  # a parameter
    filled_in: bool = False  # whether the parameter stands in the command
    gate: str = ""  # a parameter without which it is off
    optional: bool = False
    counts: bool = False  # whether it prints only how many lines it has read
    extra: bool = False
    persist: bool = False
    always: bool = False
    fails: bool = False

    @property
    def name(self) -> str:
        return f"s{self.number}"

    @property
    def outs(self) -> tuple[str, ...]:
        """The files that it makes."""
        return (f"o{self.number}/out", *([f"x{self.number}"] if self.extra else []))

    @property
    def repeatable(self) -> bool:
        return not (self.persist or self.always)


@dataclass(frozen=True, slots=True)
class Made:
    """What a run of a stage recorded: what went in, what came out, whether it went on from what there was."""

    inputs: str
    outs: Mapping[str, str]
    went_on: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What a run comes to: what was done with each stage, and those that failed; the others were not reached."""

    actions: Mapping[str, str]
    failed: frozenset[str]

    @property
    def executed(self) -> set[str]:
        return {name for name, action in self.actions.items() if action != "skip"} | self.failed


@dataclass(slots=True)
class World:
    """A project: `there` are the bytes of its files, by path; what mlx knows of it are `locks` and `earlier` runs."""

    there: dict[str, str]
    params: dict[str, int]
    stages: dict[int, Spec] = field(default_factory=dict)
    locks: dict[int, Made] = field(default_factory=dict)
    earlier: dict[str, Made] = field(default_factory=dict)

    def run(self, targets: Iterable[int] = (), *, force: bool = False, run_cache: bool = True) -> Done:
        """Bring the stages up to date that are meant; whatever does not need one that fails goes on."""
        named = {*targets} or {*self.stages}
        chosen = {*named}
        for number in sorted(self.stages, reverse=True):
            if number in chosen and not self.is_off(self.stages[number]):
                chosen |= self.needs(self.stages[number])
        actions: dict[str, str] = {}
        failed: set[int] = set()
        dropped: set[int] = set()
        for number in sorted(chosen):
            spec = self.stages[number]
            if self.needs(spec) & (failed | dropped):
                dropped.add(number)
                continue
            made, action = self.decide(spec, force=force and number in named, run_cache=run_cache)
            if action == "run" and spec.fails:
                failed.add(number)
                continue
            actions[spec.name] = action
            if action == "run":
                made = self.execute(spec)
            if made is not None:
                self.locks[number] = made
                self.there |= made.outs
        return Done(actions, frozenset(self.stages[number].name for number in failed))

    def decide(self, spec: Spec, *, force: bool, run_cache: bool) -> tuple[Made | None, str]:
        """Return what is to be done with a stage, and what is to be brought back."""
        if self.is_off(spec):
            return None, "skip"
        lock = self.locks.get(spec.number)
        if force or spec.always:
            return None, "run"
        inputs = self.inputs(spec)
        if lock is not None and lock.inputs == inputs and (spec.persist or not lock.went_on):
            damaged = any(self.there.get(path) != data for path, data in lock.outs.items())
            return (lock, "restore") if damaged else (None, "skip")
        if run_cache and spec.repeatable and inputs in self.earlier:
            return self.earlier[inputs], "restore"
        return None, "run"

    def is_off(self, spec: Spec) -> bool:
        return bool(spec.gate) and self.params[spec.gate] <= 0

    def needs(self, spec: Spec) -> set[int]:
        """Return the stages that make something that a stage reads."""
        makers = {
            *spec.above,
            *(number for number in spec.beside if number in self.stages and self.stages[number].extra),
        }
        return makers & self.stages.keys()

    def inputs(self, spec: Spec) -> str:
        """Return everything that decides what a stage makes, spelled out."""
        files: dict[str, object] = {}
        for dep in deps(spec):
            if dep.endswith("/*"):
                files |= self.below(dep.removesuffix("*"))
            elif dep in self.there:
                files[dep] = self.there[dep]
            else:
                files[dep] = self.below(f"{dep}/") or None
        value = {spec.value: self.params[spec.value]} if spec.value else {}
        return repr((command(spec), sorted(files.items()), value, spec.outs))

    def below(self, prefix: str) -> dict[str, str]:
        return {path: data for path, data in sorted(self.there.items()) if path.startswith(prefix)}

    def execute(self, spec: Spec) -> Made:
        """Do what the command of a stage does, and remember it."""
        inputs, (main, *more) = self.inputs(spec), spec.outs
        label = "" if spec.filled_in else f"{spec.value}: "
        said = [f"{label}{self.params[spec.value]}\n"] if spec.value else []
        said += map(self.read, self.sources(spec))
        said += [self.there.get(f"o{number}/out", "") for number in spec.above]
        said += [self.there[f"x{number}"] for number in spec.beside]
        said += [self.there.get(OPTIONAL, "")] if spec.optional else []
        said += [self.there[UNDECLARED]] if spec.always else []
        said += [f"{spec.text}\n"]
        printed = "".join(said)
        printed = f"{printed.count(chr(10))}\n" if spec.counts else printed
        before = self.there.get(main) if spec.persist else None
        made = Made(
            inputs, {main: (before or "") + printed, **dict.fromkeys(more, f"{spec.text}!\n")}, before is not None
        )
        if spec.repeatable:
            self.earlier[inputs] = made
        return made

    def sources(self, spec: Spec) -> list[str]:
        """Return the files that are no outputs and that a stage reads, in the order in which it does."""
        if not spec.by_folder:
            return [*spec.files]
        folders = dict.fromkeys(f"{path.partition('/')[0]}/" if "/" in path else path for path in spec.files)
        return [path for folder in folders for path in ([folder] if folder in self.there else self.below(folder))]

    def read(self, path: str) -> str:
        """Return what a command prints of a file."""
        data = self.there[path]
        return data.removeprefix("echo ") if path == SCRIPT else data


def deps(spec: Spec) -> list[str]:
    """Return the paths and globs that a stage declares."""
    paths = [*spec.files, *(f"o{number}/out" for number in spec.above)]
    if spec.by_folder:
        folders = [path.partition("/")[0] for path in paths]
        paths = [f"{folder}/*" if folder == "raw" else folder for folder in dict.fromkeys(folders)]
    return [*paths, *(f"x{number}" for number in spec.beside), *([OPTIONAL] if spec.optional else [])]


def command(spec: Spec) -> str:
    """Return the command of a stage, as `mlx.yaml` has it."""
    paths = list(dict.fromkeys(f"{path.partition('/')[0]}/*" if "/" in path else path for path in spec.files))
    reads = [f"sh {path}" if path == SCRIPT else f"cat {path}" for path in (paths if spec.by_folder else spec.files)]
    reads += [f"cat o{number}/out 2> /dev/null" for number in spec.above]
    reads += [f"cat x{number}" for number in spec.beside]
    reads += [f"cat {OPTIONAL} 2> /dev/null"] if spec.optional else []
    reads += [f"cat {UNDECLARED}"] if spec.always else []
    value = f"echo ${{params.{spec.value}}}" if spec.filled_in else f"grep ^{spec.value}: params.yaml"
    printed = "; ".join([*([value] if spec.value else []), *reads, f"echo {spec.text}"])
    count = " | grep -c ''" if spec.counts else ""
    extra = f"; echo {spec.text}! > x{spec.number}" if spec.extra else ""
    return f"mkdir -p o{spec.number}; ({printed}){count} >> o{spec.number}/out{extra}{'; false' if spec.fails else ''}"
