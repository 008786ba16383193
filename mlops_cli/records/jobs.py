"""A job: a file that says everything that a worker elsewhere needs to run one stage, by digest.

The worker has no clone of the repository: code and data come from the remote, and what the stage makes goes there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mlops_cli.documents import Fields, check_version, dump_yaml, parse_yaml
from mlops_cli.hashing import Digest, parse_digest
from mlops_cli.records.locks import Lock, read_lock
from mlops_cli.records.paths import project_folder

_KEYS = ("mlx", "stage", "folder", "key", "remote", "code", "inputs")


class Code(NamedTuple):
    """The files of a project that are not data, as one tree: `size` in bytes, with the number of `files`."""

    digest: Digest
    size: int
    files: int


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the stage at the address `stage`, whose `mlx.yaml` is in `folder` of the project.

    `inputs` is the lock that the run will write, still without outputs and metrics, and `key` its fingerprint, under
    which the result is found. `remote` is the URL of the remote that has the `code` and all dependencies.
    """

    stage: str
    folder: str
    key: str
    remote: str
    code: Code
    inputs: Lock

    def to_bytes(self) -> bytes:
        """Return the file."""
        values: dict[str, object] = {"mlx": 1, "stage": self.stage, "folder": self.folder, "key": self.key}
        code = {"tree": self.code.digest, "size": self.code.size, "files": self.code.files}
        inputs = parse_yaml(self.inputs.to_bytes(self.folder), "inputs").value
        return dump_yaml({**values, "remote": self.remote, "code": code, "inputs": inputs})


def read_job(data: bytes, name: str) -> Job:
    """Read the job in the file called `name`; RecordError when it is anything else."""
    fields = Fields(parse_yaml(data, name), what="this job")
    check_version(fields)
    fields.only(_KEYS)
    folder = fields.parsed("folder", lambda text: project_folder(text or ".", ""))
    code = Fields(fields.document, (*fields.at, "code"), what="`code`")
    code.only(("tree", "size", "files"))
    key = fields.text("key")
    if not (key.isascii() and key.isalnum()):
        raise fields.error("`key` must be a fingerprint", "key", "`mlx job make` writes the file anew")
    inputs = Fields(fields.document, (*fields.at, "inputs"), what="`inputs`").values
    return Job(
        stage=fields.text("stage"),
        folder=folder,
        key=key,
        remote=fields.text("remote"),
        code=Code(code.parsed("tree", parse_digest), code.integer("size"), code.integer("files")),
        inputs=read_lock(dump_yaml(inputs), f"{name} (inputs)", folder),
    )
