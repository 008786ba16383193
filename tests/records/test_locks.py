from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.documents import MAX_INTEGER
from mlops_cli.errors import RecordError
from mlops_cli.hashing import Digest, digest_from_raw, fingerprint
from mlops_cli.records.locks import Input, Lock, OutputRecord, inputs_of, read_lock
from mlops_cli.records.pointers import ObjectKind

TREE, BLOB = ObjectKind.TREE, ObjectKind.BLOB
DIGEST = Digest("blake3:" + "0123456789abcdef" * 4)
FULL = f"""mlx: 1
cmd:
  - python train.py --model rf
  - echo done
deps:
  - {{path: ../shared/x.py, blob: {DIGEST}, size: 12}}
  - {{path: data/prepared, tree: {DIGEST}, size: 154683}}
globs:
  - src/**/*.py
params:
  params.yaml:
    train:
      lr: 0.1
      n_estimators: 50
env:
  OMP_NUM_THREADS: "2"
wdir: ..
outs:
  - {{path: logs, tree: {DIGEST}, size: 7, files: 2, push: false}}
  - {{path: metrics/rf.json, blob: {DIGEST}, size: 30, git: true}}
  - {{path: tool, blob: {DIGEST}, size: 1, executable: true}}
metrics:
  metrics/rf.json:
    accuracy: 0.972
    n: 450
""".encode()

DIGESTS = st.binary(min_size=32, max_size=32).map(digest_from_raw)
SIZES = st.integers(0, MAX_INTEGER)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
LINES = TEXTS.filter(bool)
PATHS = st.lists(st.sampled_from(["a", "b", "sub", "x.py", "é b", "y,z"]), min_size=1, max_size=4).map("/".join)
BELOW = PATHS.map(lambda path: f"sub/{path}")
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), TEXTS
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
BY_FILE = st.dictionaries(PATHS, st.dictionaries(TEXTS, VALUES, max_size=3), max_size=3)
INPUTS = st.builds(Input, PATHS, st.sampled_from(ObjectKind), DIGESTS, SIZES, st.just(value=False), st.none() | DIGESTS)
OUTPUTS = st.one_of(
    st.builds(
        OutputRecord, BELOW, st.just(TREE), DIGESTS, SIZES, SIZES, st.booleans(), st.booleans(), st.just(value=False)
    ),
    st.builds(
        OutputRecord, BELOW, st.just(BLOB), DIGESTS, SIZES, st.none(), st.booleans(), st.booleans(), st.booleans()
    ),
)
LOCKS = st.builds(
    Lock,
    cmd=st.lists(LINES, min_size=1, max_size=3).map(tuple),
    deps=st.lists(INPUTS, max_size=4, unique_by=lambda entry: entry.path).map(tuple),
    globs=st.lists(PATHS, max_size=2, unique=True).map(tuple),
    params=BY_FILE,
    env=st.dictionaries(TEXTS, TEXTS, max_size=2),
    wdir=st.one_of(st.just(""), st.just("sub"), PATHS),
    outs=st.lists(OUTPUTS, max_size=4, unique_by=lambda entry: entry.path).map(tuple),
    metrics=BY_FILE,
    without=st.lists(PATHS, max_size=2, unique=True).map(tuple),
)


def test_a_lock_is_read_with_project_paths() -> None:
    assert read_lock(FULL, "sub/mlx.lock/train.yaml", "sub") == Lock(
        cmd=("python train.py --model rf", "echo done"),
        deps=(
            Input("shared/x.py", BLOB, DIGEST, 12),
            Input("sub/data/prepared", TREE, DIGEST, 154683),
        ),
        globs=("sub/src/**/*.py",),
        params={"sub/params.yaml": {"train": {"n_estimators": 50, "lr": 0.1}}},
        env={"OMP_NUM_THREADS": "2"},
        wdir="",
        outs=(
            OutputRecord("sub/logs", TREE, DIGEST, 7, 2, push=False),
            OutputRecord("sub/metrics/rf.json", BLOB, DIGEST, 30, git=True),
            OutputRecord("sub/tool", BLOB, DIGEST, 1, executable=True),
        ),
        metrics={"sub/metrics/rf.json": {"n": 450, "accuracy": 0.972}},
    )


def test_bytes_survive_reading_and_writing() -> None:
    assert read_lock(FULL, "train.yaml", "sub").to_bytes("sub") == FULL


def test_only_what_there_is_is_written() -> None:
    data = b"mlx: 1\ncmd: python x.py\n"

    assert Lock(("python x.py",)).to_bytes("") == data
    assert Lock(("python x.py",), wdir="sub").to_bytes("sub") == data
    assert read_lock(data, "x.yaml", "sub") == Lock(("python x.py",), wdir="sub")


@given(LOCKS)
def test_a_lock_survives_writing_and_reading(lock: Lock) -> None:
    data = lock.to_bytes("sub")

    assert read_lock(data, "x.yaml", "sub") == lock
    assert read_lock(data, "x.yaml", "sub").to_bytes("sub") == data


@given(LOCKS, st.randoms(use_true_random=False))
def test_order_does_not_matter(lock: Lock, random: object) -> None:
    def shuffled(values: object) -> object:
        if isinstance(values, dict):
            items = [(key, shuffled(value)) for key, value in values.items()]
            random.shuffle(items)  # type: ignore[attr-defined]
            return dict(items)
        return values

    def mixed(entries: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(random.sample(entries, len(entries)))  # type: ignore[attr-defined]

    other = Lock(
        cmd=lock.cmd,
        deps=mixed(lock.deps),  # type: ignore[arg-type]
        globs=mixed(lock.globs),  # type: ignore[arg-type]
        params=shuffled(lock.params),  # type: ignore[arg-type]
        env=shuffled(lock.env),  # type: ignore[arg-type]
        wdir=lock.wdir,
        outs=mixed(lock.outs),  # type: ignore[arg-type]
        metrics=shuffled(lock.metrics),  # type: ignore[arg-type]
        without=mixed(lock.without),  # type: ignore[arg-type]
    )

    assert other == lock
    assert other.to_bytes("sub") == lock.to_bytes("sub")
    assert fingerprint(inputs_of(other)) == fingerprint(inputs_of(lock))


@given(LOCKS)
def test_the_inputs_are_json_and_leave_results_out(lock: Lock) -> None:
    inputs = inputs_of(lock)

    assert json.loads(json.dumps(inputs)) == inputs
    assert set(inputs) - {"without"} == {"cmd", "deps", "params", "env", "wdir", "outs"}
    changed = tuple(OutputRecord(out.path, BLOB, DIGEST, out.size) for out in lock.outs)
    assert inputs_of(replace(lock, globs=(), outs=changed, metrics={})) == inputs


def test_the_inputs_name_paths_and_digests() -> None:
    assert inputs_of(read_lock(FULL, "x.yaml", "sub")) == {
        "cmd": ["python train.py --model rf", "echo done"],
        "deps": [["shared/x.py", DIGEST], ["sub/data/prepared", DIGEST]],
        "params": {"sub/params.yaml": {"train": {"lr": 0.1, "n_estimators": 50}}},
        "env": {"OMP_NUM_THREADS": "2"},
        "wdir": "",
        "outs": ["sub/logs", "sub/metrics/rf.json", "sub/tool"],
    }


ENTRY = f"blob: {DIGEST}, size: 1"


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ("cmds: x\n", "3: unknown key `cmds` in this lock", "did you mean `cmd`?"),
        ("deps: {}\n", "3: `deps` must be a list", None),
        ("deps: [x]\n", "3: `deps[0]` must be a mapping (`key: value`), not text", None),
        (f"deps:\n  - {{path: x, {ENTRY}, files: 1}}\n", "4: unknown key `files` in `deps[0]`", None),
        (f"deps:\n  - {{path: /x, {ENTRY}}}\n", "4: `path`: path `/x` must be relative", None),
        (f"deps:\n  - {{path: ../../x, {ENTRY}}}\n", "4: `path`: path `../../x` leaves the project", None),
        (f"deps:\n  - {{path: .git/x, {ENTRY}}}\n", "4: `path`: path `sub/.git/x` reaches into", None),
        (
            f"deps:\n  - {{path: x, {ENTRY}}}\n  - {{path: ./x, {ENTRY}}}\n",
            "5: `sub/x` is in `deps` twice",
            "`mlx run`",
        ),
        (f"outs:\n  - {{path: ../x, {ENTRY}}}\n", "4: `path`: path `../x` must not hold `..`", None),
        (f"outs:\n  - {{{ENTRY}}}\n", "4: `path` is missing in `outs[0]`", None),
        (f"outs:\n  - {{path: x, {ENTRY}, files: 1}}\n", "4: `files` belongs to folders, and this is a file", None),
        ("outs:\n  - {path: x, size: 1}\n", "4: `tree` (a folder) or `blob` (a file) is missing in `outs[0]`", None),
        ("outs:\n  - {path: x, blob: 'sha256:00', size: 1}\n", "4: `blob`: `sha256` is not a digest algorithm", None),
        (
            f"outs:\n  - {{path: x, {ENTRY}, pushed: true}}\n",
            "4: unknown key `pushed` in `outs[0]`",
            "did you mean `push`?",
        ),
        (f"outs:\n  - {{path: x, {ENTRY}, push: 'no'}}\n", "4: `push` must be `true` or `false`, not text", None),
        ("globs: ['/x/*']\n", "3: `globs`: path `/x/*` must be relative", None),
        ("params: {params.yaml: 3}\n", "3: `params.yaml` must be a mapping", None),
        ("params: {../../p.yaml: {}}\n", "3: `params`: path `../../p.yaml` leaves the project", None),
        ("params: {p.yaml: {}, ./p.yaml: {}}\n", "3: `sub/p.yaml` is in `params` twice", None),
        ("metrics: {/m.json: {}}\n", "3: `metrics`: path `/m.json` must be relative", None),
        (
            "env: {A: 1}\n",
            "3: `A` must be text, not the number `1`",
            "put it in quotes, as it is written there: without them it is a number",
        ),
        ("wdir: ../..\n", "3: `wdir`: path `../..` leaves the project", None),
    ],
)
def test_a_wrong_lock_is_refused(body: str, message: str, hint: str | None) -> None:
    with pytest.raises(RecordError) as caught:
        read_lock(f"mlx: 1\ncmd: x\n{body}".encode(), "sub/mlx.lock/t.yaml", "sub")

    assert caught.value.message.startswith(f"sub/mlx.lock/t.yaml:{message}")
    assert hint is None or (caught.value.hint or "").startswith(hint)


@pytest.mark.parametrize("cmd", ["cmd: ''", "cmd: []", "cmd: ['']", "cmd: 3", "cmd: {}", "deps: []"])
def test_a_lock_has_a_command(cmd: str) -> None:
    with pytest.raises(RecordError, match="`cmd"):
        read_lock(f"mlx: 1\n{cmd}\n".encode(), "t.yaml", "")


def test_a_lock_too_large_to_read_is_not_written() -> None:
    deps = tuple(Input(f"data/{number:06}.png", BLOB, DIGEST, 1) for number in range(10_000))

    with pytest.raises(RecordError, match="larger than 1 MiB"):
        Lock(("x",), deps).to_bytes("")
