"""Uploads to S3 in parts, which go on where one before them was cut: by a network, Ctrl-C or `kill -9`.

S3 keeps the parts of an upload that nobody ended, and tells which they are; so nothing is noted on this side, and any
clone may go on. A part that is there already counts when its ETag is the MD5 of the bytes that belong there. S3 makes
ETags of another kind where it encrypts with keys of KMS: those parts are sent again.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

from mlops_cli.store.bucket import Traffic, plain_etag

PART = 8 << 20  # bytes; S3 takes none below 5 MiB but the last
MULTIPART_FROM = 2 * PART  # bytes: below it, a second attempt costs less than the requests that save it
NO_SUCH_UPLOAD = "NoSuchUpload"  # S3's word for one that was ended
_MOST_PARTS = 10_000  # S3's limit
_NO_HELP = frozenset({400, 403, 405, 501})  # answers of servers that do not tell of unfinished uploads


class Unfinished(NamedTuple):
    """An upload that was not ended: of which key, its name for S3, and when it was `begun` (s since the epoch)."""

    key: str
    name: str
    begun: float


@dataclass(slots=True)
class _Upload:
    """An upload that has begun: the ETags of its parts by number, those that `stood` there before, and bytes `sent`."""

    name: str
    stood: dict[int, tuple[str, int]] = field(default_factory=dict)
    done: dict[int, str] = field(default_factory=dict)
    sent: int = 0


class Multipart:
    """Uploads in parts to one bucket of S3, through a client of botocore that is made when it is first needed.

    Its exceptions pass through.
    """

    def __init__(self, make_client: Callable[[], Any], bucket: str, traffic: Traffic) -> None:
        self._make_client = make_client
        self._made: Any = None
        self._tells = True  # whether the server lists uploads that were not ended
        self._bucket = bucket
        self._traffic = traffic
        self._begun: dict[str, _Upload] = {}  # what a second attempt goes on with
        self._lock = Lock()

    def put_file(self, key: str, path: str) -> int:
        """Store the bytes of a local file, of `MULTIPART_FROM` or more; return how many had to be sent.

        After an exception the same call goes on with the parts that are missing.
        """
        from botocore.exceptions import ClientError

        try:
            return self._put(key, path)
        except ClientError as error:
            if code_of(error) == NO_SUCH_UPLOAD:  # another clone ended it, or somebody gave it up
                with self._lock:
                    self._begun.pop(key, None)
            raise

    def _put(self, key: str, path: str) -> int:
        upload = self._upload_of(key)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = part_length(size)
            for number, start in enumerate(range(0, size, length), 1):
                if number not in upload.done:
                    self._put_part(key, upload, number, os.pread(file.fileno(), length, start))
                self._traffic.departed(path, min(start + length, size))
        numbers = range(1, -(-size // length) + 1)
        parts = [{"PartNumber": number, "ETag": upload.done[number]} for number in numbers]
        self._call("complete_multipart_upload", key, UploadId=upload.name, MultipartUpload={"Parts": parts})
        with self._lock:
            self._begun.pop(key, None)
        return upload.sent

    def _put_part(self, key: str, upload: _Upload, number: int, data: bytes) -> None:
        etag, size = upload.stood.get(number, ("", -1))
        if size == len(data) and plain_etag(etag) == hashlib.md5(data, usedforsecurity=False).hexdigest():
            upload.done[number] = etag
            return
        body = io.BytesIO(data)  # a file is sent piece by piece, and each has the whole patience of the client
        answer = self._call("upload_part", key, UploadId=upload.name, PartNumber=number, Body=body)
        upload.sent += len(data)
        upload.done[number] = answer["ETag"]

    def _upload_of(self, key: str) -> _Upload:
        """Return what to go on with: what the server tells, else what was begun here, else a new upload."""
        with self._lock:
            ours = self._begun.get(key)
        told = self._told(key)
        if told is None:  # nobody can know what became of the parts but who sent them
            upload = ours or _Upload("")
        else:
            upload = told
            if ours is not None:
                upload.sent = ours.sent
                stands = {number: etag for number, (etag, _) in told.stood.items()} if told.name == ours.name else {}
                upload.done = {number: etag for number, etag in ours.done.items() if stands.get(number) == etag}
        if not upload.name:
            upload.name = self._call("create_multipart_upload", key)["UploadId"]
        with self._lock:
            self._begun[key] = upload
        return upload

    def _told(self, key: str) -> _Upload | None:
        """Return the upload of `key` that was begun last and was not ended, nameless where there is none.

        None when the server does not tell.
        """
        begun = [upload for upload in self.unfinished(key) if upload.key == key]
        if not begun:
            return _Upload("") if self._tells else None
        name = max(begun, key=lambda upload: upload.begun).name
        parts = self._pages("list_parts", Key=key, UploadId=name)
        return _Upload(name, {part["PartNumber"]: (part["ETag"], part["Size"]) for part in parts})

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """Yield the uploads of keys with a prefix that were not ended, as far as the server tells."""
        for item in self._pages("list_multipart_uploads", Prefix=prefix):
            yield Unfinished(item["Key"], item["UploadId"], item["Initiated"].timestamp())

    def give_up(self, key: str, name: str) -> None:
        """End an upload without a value: its parts are gone, and whoever is still at it begins anew."""
        from botocore.exceptions import ClientError

        try:
            self._call("abort_multipart_upload", key, UploadId=name)
        except ClientError as error:
            if code_of(error) != NO_SUCH_UPLOAD:
                raise

    def _pages(self, verb: str, **more: Any) -> Iterator[Mapping[str, Any]]:
        """Yield what a listing of S3 names, one request a page."""
        from botocore.exceptions import ClientError

        rows = {"list_multipart_uploads": "Uploads", "list_parts": "Parts"}[verb]
        try:
            for page in self._client.get_paginator(verb).paginate(Bucket=self._bucket, **more):
                self._traffic.count()
                yield from page.get(rows, ())
        except ClientError as error:
            self._traffic.count()
            if status_of(error) not in _NO_HELP:
                raise
            self._tells = False

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make_client()
            return self._made

    def _call(self, verb: str, key: str, **more: Any) -> Any:
        self._traffic.count()
        return getattr(self._client, verb)(Bucket=self._bucket, Key=key, **more)


def part_length(size: int) -> int:
    """Return how long the parts of a value of `size` bytes are, the last excepted."""
    needed = -(-size // _MOST_PARTS)
    return max(PART, -(-needed // PART) * PART)


def code_of(error: Any) -> str:
    """Return S3's own word for what a ClientError of botocore says."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: Any) -> int:
    """Return the HTTP status of a ClientError of botocore, 0 when there was none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
