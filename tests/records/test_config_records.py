from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import RecordError, UsageError
from mlops_cli.records import config
from mlops_cli.records.config import Config, Layer, Remote, Setting

FULL = b"""mlx: 1
core:
  remote: storage
  lock_timeout: 2.5
  durability: strict
  jobs: 4
cache:
  dir: ~/cache
  link: hardlink
remotes:
  a.b:
    url: ../elsewhere
    owner: single
  private:
    paths:
      - data/private/**
  storage:
    url: s3://bucket/prefix
    paths:
      - data/big
      - "!*.txt"
"""
FLAT = {
    "core.remote": "storage",
    "core.lock_timeout": 2.5,
    "core.durability": "strict",
    "core.jobs": 4,
    "cache.dir": "~/cache",
    "cache.link": "hardlink",
    "remotes.a.b.url": "../elsewhere",
    "remotes.a.b.owner": "single",
    "remotes.private.paths": ("data/private/**",),
    "remotes.storage.url": "s3://bucket/prefix",
    "remotes.storage.paths": ("data/big", "!*.txt"),
}

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0@"), min_size=1, max_size=20)
PATTERNS = (
    st.lists(st.from_regex(r"!?[a-z*]{1,5}(/[a-z*]{1,5}){0,2}/?", fullmatch=True), min_size=1, max_size=3)
    .filter(lambda patterns: not patterns[0].startswith("!"))
    .map(tuple)
)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)
LAYERS = st.builds(
    lambda values, remotes, paths: {
        **values,
        **{f"remotes.{name}.url": url for name, url in remotes.items()},
        **{f"remotes.{name}.paths": patterns for name, patterns in paths.items()},
    },
    st.fixed_dictionaries(
        {},
        optional={
            "core.remote": NAMES,
            "core.lock_timeout": st.one_of(st.integers(0, 10**6), st.floats(0, 1e6)),
            "core.durability": st.sampled_from(config.DURABILITIES),
            "core.jobs": st.integers(0, config.MAX_JOBS),
            "cache.dir": TEXTS,
            "cache.link": st.sampled_from(config.LINKS),
        },
    ),
    st.dictionaries(NAMES, TEXTS, max_size=3),
    st.dictionaries(NAMES, PATTERNS, max_size=3),
)


def test_a_configuration_is_read() -> None:
    assert config.read_config(FULL, "c.yaml") == FLAT
    assert config.read_config(b"mlx: 1\n", "c.yaml") == {}


def test_bytes_survive_reading_and_writing() -> None:
    assert config.write_config(config.read_config(FULL, "c.yaml")) == FULL
    assert config.write_config({}) == b"mlx: 1\n"


@given(LAYERS)
def test_a_configuration_survives_writing_and_reading(values: dict[str, object]) -> None:
    data = config.write_config(values)

    assert config.read_config(data, "c.yaml") == values
    assert config.write_config(config.read_config(data, "c.yaml")) == data


@given(LAYERS, NAMES)
def test_an_edit_keeps_the_canonical_form(values: dict[str, object], name: str) -> None:
    key = f"remotes.{name}.url"
    edited = config.set_value(values, key, "s3://b")

    assert config.write_config(edited) == config.write_config(config.read_config(config.write_config(edited), "c.yaml"))
    assert config.write_config(config.unset_value(edited, key)) == config.write_config(
        {known: value for known, value in values.items() if known != key}
    )


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"mlx: 1\ncor: {}\n", "2: unknown key `cor` in this configuration", "did you mean `core`?"),
        (b"mlx: 1\ncore:\n  remot: x\n", "3: unknown key `remot` in `core`", "did you mean `remote`?"),
        (b"mlx: 1\ncore: []\n", "2: `core` must be a mapping (`key: value`), not a list", None),
        (b"mlx: 1\ncore: {remote: -x}\n", "2: `-x` cannot be the name of a remote", None),
        (b"mlx: 1\ncore: {remote: 3}\n", "2: `core.remote` must be text, not the number `3`", None),
        (
            b"mlx: 1\ncore: {lock_timeout: soon}\n",
            "2: `core.lock_timeout` must be a number of seconds, 0 or more",
            None,
        ),
        (b"mlx: 1\ncore: {lock_timeout: -1}\n", "2: `core.lock_timeout` must be a number of seconds, 0 or more", None),
        (b"mlx: 1\ncore: {lock_timeout: true}\n", "2: `core.lock_timeout` must be a number of seconds", None),
        (b"mlx: 1\ncore: {jobs: 1.5}\n", "2: `core.jobs` must be a whole number from 0 to 1024", None),
        (b"mlx: 1\ncore: {jobs: 5000}\n", "2: `core.jobs` must be a whole number from 0 to 1024", None),
        (b"mlx: 1\ncore: {durability: fast}\n", "2: `core.durability` must be one of `batch`, `strict`, `none`", None),
        (b"mlx: 1\ncache: {link: reflnk}\n", "2: `cache.link` must be one of `copy`, `reflink`,", None),
        (b"mlx: 1\ncache: {dir: ''}\n", "2: `cache.dir` must be text, not an empty text", None),
        (b"mlx: 1\nremotes: {a b: {url: x}}\n", "2: `a b` cannot be the name of a remote", None),
        (b"mlx: 1\nremotes: {a: x}\n", "2: remote `a` must be a mapping (`key: value`), not text", None),
        (b"mlx: 1\nremotes:\n  a: {urls: x}\n", "3: unknown key `urls` in remote `a`", "did you mean `url`?"),
        (b"mlx: 1\nremotes: {a: {}}\n", "2: `url` is missing in remote `a`", None),
        (b"mlx: 1\nremotes: {a: {paths: x}}\n", "2: `paths` must be a list", None),
        (
            b"mlx: 1\nremotes: {a: {paths: []}}\n",
            "2: `remotes.a.paths` must be a list of patterns, with one or more",
            None,
        ),
        (
            b'mlx: 1\nremotes: {a: {paths: ["!x", y]}}\n',
            "2: `remotes.a.paths` begins with `!x`, which takes out of what patterns before it name, and there are none",
            None,
        ),
        *(
            (
                f'mlx: 1\nremotes: {{a: {{paths: ["ok", "{pattern}"]}}}}\n'.encode(),
                f"2: `remotes.a.paths` holds `{pattern}`, which names no path",
                None,
            )
            for pattern in ("", " ", "#x", "/", "!", "!!x", "./x", "x/../y", "..", "x//y", "! /")
        ),
        (
            b"mlx: 1\nremotes:\n  a:\n    url: s3://key:hunter2@bucket\n",
            "4: `remotes.a.url` holds a password, which must not be written down here",
            "leave it out: credentials come from",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(data: bytes, message: str, hint: str | None) -> None:
    with pytest.raises(RecordError) as caught:
        config.read_config(data, ".mlx/config.yaml")

    assert caught.value.message.startswith(f".mlx/config.yaml:{message}")
    assert hint is None or (caught.value.hint or "").startswith(hint)
    assert "hunter2" not in caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize(
    "url",
    ["s3://AKIA:ab/cd+ef@bucket/x", "ssh://me:pw@host/x", "https://user:@host", "sftp://u:12pw@h", "gs://u:p@w@host"],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.set_value({}, "remotes.a.url", url)

    assert "holds a password" in caught.value.message
    assert url not in caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/p", "ssh://me@host:22/x", "http://host:8080/a@b", "http://host:8080", "../x", "/mnt/x", "memory://a"],
)
def test_other_urls_are_accepted(url: str) -> None:
    assert config.set_value({}, "remotes.a.url", url) == {"remotes.a.url": url}


# Layers


def test_the_strongest_layer_decides_each_key() -> None:
    layers = (
        Layer("environment", {"core.jobs": 2}),
        Layer("clone", {"core.jobs": 3, "cache.dir": "/c", "remotes.r.url": "one"}),
        Layer("project", {"core.jobs": 4, "core.remote": "r", "remotes.r.url": "two", "remotes.s.url": "three"}),
    )

    assert config.resolve(layers) == Config(
        core_remote="r",
        core_lock_timeout=10.0,
        core_durability="batch",
        core_jobs=2,
        cache_dir="/c",
        cache_link="reflink",
        remotes={"r": Remote("one"), "s": Remote("three")},
        gc_grace=14 * 86400.0,
    )
    assert config.explain(layers) == (
        Setting("core.remote", "r", "project"),
        Setting("core.lock_timeout", 10, "default"),
        Setting("core.durability", "batch", "default"),
        Setting("core.jobs", 2, "environment"),
        Setting("cache.dir", "/c", "clone"),
        Setting("cache.link", "reflink", "default"),
        Setting("gc.grace", "14d", "default"),
        Setting("remotes.r.url", "one", "clone"),
        Setting("remotes.s.url", "three", "project"),
    )


def test_what_belongs_to_a_remote_is_known_without_its_url() -> None:
    layers = (
        Layer("clone", {"remotes.r.url": "one", "remotes.s.paths": ("mine",)}),
        Layer("project", {"remotes.r.paths": ("a", "b"), "remotes.s.paths": ("theirs",)}),
    )

    found = config.resolve(layers)

    assert found.remotes == {"r": Remote("one")}
    assert found.remote_paths == {"r": ("a", "b"), "s": ("mine",)}


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("data/private/**", ("data/private/**",)),
        ("[ab]*.csv", ("[ab]*.csv",)),
        ('["data/a", "!data/a/b c"]', ("data/a", "!data/a/b c")),
        ("[data/a, data/b]", ("data/a", "data/b")),
    ],
)
def test_patterns_are_typed_as_one_or_as_a_list(text: str, patterns: tuple[str, ...]) -> None:
    assert config.set_value({}, "remotes.a.paths", text) == {"remotes.a.paths": patterns}
    assert config.set_value({}, "remotes.a.paths", patterns) == {"remotes.a.paths": patterns}


@pytest.mark.parametrize("value", ["#x", "[]", "[1]", "a, b", ["a", "."], ["!a"], []])
def test_other_patterns_are_refused(value: str | list[str]) -> None:
    with pytest.raises(UsageError, match=r"`remotes\.a\.paths` (holds|must be|is no list|begins with)"):
        config.set_value({}, "remotes.a.paths", value)


def test_without_layers_there_are_defaults() -> None:
    assert config.resolve(()) == Config(None, 10.0, "batch", 0, None, "reflink", {}, 14 * 86400.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("12h", 43200), ("2w", 1209600), ("1.5d", 129600), ("90", 90), ("5m", 300), ("0s", 0)]
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    values = config.set_value({}, "gc.grace", text)

    assert config.read_config(config.write_config(values), "config.yaml") == values
    assert config.resolve([Layer("project", values)]).gc_grace == seconds
    assert config.environment_layer({"MLX_GC_GRACE": text}).values == values


@pytest.mark.parametrize("text", ["soon", "-1d", "3 d", "1e9", "d", "inf", "14D", "1y"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"`gc\.grace` must be a duration such as 12h, 14d or 2w"):
        config.set_value({}, "gc.grace", text)


def test_a_number_in_a_file_counts_seconds() -> None:
    values = config.read_config(b"mlx: 1\ngc: {grace: 3600}\n", "config.yaml")

    assert config.resolve([Layer("project", values)]).gc_grace == 3600


def test_environment_variables_are_parsed_by_type() -> None:
    environ = {
        "MLX_CORE_REMOTE": "123",
        "MLX_CORE_LOCK_TIMEOUT": "2",
        "MLX_CORE_JOBS": "",
        "MLX_CACHE_DIR": "yes",
        "MLX_CACHE_LINK": "copy",
        "MLX_TRACEBACK": "1",
        "PATH": "/bin",
    }

    layer = config.environment_layer(environ)

    assert layer == Layer(
        "environment",
        {"core.remote": "123", "core.lock_timeout": 2, "cache.dir": "yes", "cache.link": "copy"},
    )


@pytest.mark.parametrize(
    ("variable", "text", "message", "hint"),
    [
        (
            "MLX_CORE_REMOT",
            "x",
            "environment variable `MLX_CORE_REMOT` is not a setting",
            "did you mean `MLX_CORE_REMOTE`?",
        ),
        (
            "MLX_CACHE_LINK",
            "hardlnk",
            "environment variable `MLX_CACHE_LINK`: `cache.link` must be",
            "did you mean `hardlink`?",
        ),
        ("MLX_CORE_JOBS", "many", "environment variable `MLX_CORE_JOBS`: `core.jobs` must be a whole number", None),
        ("MLX_CORE_LOCK_TIMEOUT", ".inf", "environment variable `MLX_CORE_LOCK_TIMEOUT`: `.inf` is not", None),
    ],
)
def test_wrong_environment_variables_are_named(variable: str, text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        config.environment_layer({variable: text})

    assert caught.value.message.startswith(message)
    assert caught.value.hint == hint


# Editing


def test_values_are_set_by_type() -> None:
    values = config.set_value({}, "core.lock_timeout", "1.5")
    values = config.set_value(values, "core.remote", "1")
    values = config.set_value(values, "remotes.1.url", "12")

    assert values == {"core.lock_timeout": 1.5, "core.remote": "1", "remotes.1.url": "12"}


@pytest.mark.parametrize(
    ("key", "text", "message", "hint"),
    [
        ("core.remot", "x", "`core.remot` is not a setting", "did you mean `core.remote`?"),
        ("zzz", "x", "`zzz` is not a setting", "the settings are `core.remote`, "),
        ("remotes.a", "x", "`remotes.a` is not a setting", "did you mean `remotes.NAME.url`?"),
        ("remotes.a b.url", "x", "`a b` cannot be the name of a remote", None),
        ("remotes.a.url", "", "`remotes.a.url` must be text, not an empty text", None),
        ("core.jobs", "-1", "`core.jobs` must be a whole number from 0 to 1024, not the number `-1`", None),
        ("core.durability", "batsh", "`core.durability` must be one of", "did you mean `batch`?"),
    ],
)
def test_wrong_edits_are_refused(key: str, text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        config.set_value({}, key, text)

    assert caught.value.message.startswith(message)
    assert hint is None or (caught.value.hint or "").startswith(hint)


def test_unsetting_what_is_not_set_is_refused() -> None:
    assert config.unset_value({"core.jobs": 1, "core.remote": "r"}, "core.jobs") == {"core.remote": "r"}
    with pytest.raises(UsageError, match=r"`core.jobs` is not set here"):
        config.unset_value({}, "core.jobs")
    with pytest.raises(UsageError, match=r"`core.job` is not a setting"):
        config.unset_value({}, "core.job")
