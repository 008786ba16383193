"""Remotes on S3 and what speaks like it, and behind plain web servers, through `obstore`.

Credentials, region and endpoint of S3 are those that the AWS command line would use: botocore reads environment,
profiles, SSO, roles and what the machine itself offers, and is asked again whenever they are about to end. Without
any, requests are not signed, which is enough to read public data. Uploads in parts go through botocore (`multipart`):
those of `obstore` cannot go on where one before them was cut.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from mlops_cli.errors import RemoteError
from mlops_cli.store.bucket import Stored, Traffic, plain_etag
from mlops_cli.store.judgement import Fault, Judgement, judge_exception, judge_status
from mlops_cli.store.multipart import MULTIPART_FROM, NO_SUCH_UPLOAD, Multipart, code_of, status_of
from mlops_cli.store.wire import CONNECT, PATIENCE, SILENCE, WireBucket

PIECE = 1 << 20
LIST_PAGE = 1000  # keys in one answer of S3
SLOWEST = 64 << 10  # bytes/s below which an upload is taken for stalled
KEPT_CREDENTIALS = timedelta(minutes=5)  # botocore renews them itself some 15 minutes before they end
_MAPPED = 1 << 16
_UNFINISHED = "tmp/uploads/"  # what lists show of uploads in parts that were not ended: `ID/KEY`

_S3_HINT = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `aws sso login`; "
    "the user needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
)
_HTTP_HINT = "mlx sends a web server no credentials: let everybody read it, or use `webdavs://`, `ssh://` or `s3://`"


class S3Bucket(WireBucket):
    """A bucket of S3 or of a store that speaks like it, or a folder in one: `s3://bucket/folder`."""

    def __init__(self, name: str, url: str, *, patience: float = PATIENCE, silence: float = SILENCE) -> None:
        place, _, folder = url.partition("://")[2].partition("?")[0].partition("/")

        def connect(traffic: Traffic) -> _ObjectStoreWire:
            if not place:
                raise RemoteError(f"remote `{name}` (`{url}`) names no bucket", hint="`s3://BUCKET/FOLDER`")
            settings, make_client = _s3_settings(name, silence)
            parts = Multipart(make_client, place, traffic)
            store = {"bucket": place, **settings}
            return _ObjectStoreWire(traffic, "S3Store", store, folder.strip("/"), silence, parts)

        super().__init__(name, url, connect, refusal_hint=_S3_HINT, patience=patience)


class HttpBucket(WireBucket):
    """A folder of a web server, to read from."""

    def __init__(self, name: str, url: str, *, patience: float = PATIENCE, silence: float = SILENCE) -> None:
        def connect(traffic: Traffic) -> _ObjectStoreWire:
            _import(name, "http")
            return _ObjectStoreWire(traffic, "HTTPStore", {"url": url.rstrip("/")}, "", silence)

        super().__init__(
            name, url, connect, refusal_hint=_HTTP_HINT, parallel=8, lists=False, writes=False, patience=patience
        )


def _import(name: str, extra: str) -> None:
    try:
        import obstore  # noqa: F401

        if extra == "s3":
            import botocore.session  # noqa: F401
    except ImportError as error:
        message = f"remote `{name}` needs a package for `{extra}://` that is missing"
        raise RemoteError(message, hint=f"`pip install 'mlops-cli[{extra}]'`") from error


def _s3_settings(name: str, silence: float) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Return how S3 is reached and by whom, as botocore finds it on this machine; and what makes a client of botocore.

    The client gives a connection up after `silence` (s), and tries nothing again.
    """
    _import(name, "s3")
    from botocore.configprovider import ConfiguredEndpointProvider
    from botocore.exceptions import BotoCoreError
    from botocore.session import get_session

    session = get_session()
    try:
        credentials = session.get_credentials()
        endpoint = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
        region = session.get_config_variable("region")
        if credentials is not None:
            credentials.get_frozen_credentials()
    except BotoCoreError as error:
        words = " ".join(str(error).split())[:200]
        raise RemoteError(f"remote `{name}`: AWS credentials cannot be had: {words}", hint=_S3_HINT) from error
    found: dict[str, Any] = {"region": region} if region else {}
    if endpoint:
        if not _is_web_url(endpoint):
            raise RemoteError(
                f"remote `{name}`: the endpoint of S3 is `{endpoint}`, which is no `https://` or `http://` URL",
                hint="it is set by AWS_ENDPOINT_URL, or by `endpoint_url` in AWS's configuration",
            )
        found["endpoint"] = endpoint

    make_client = partial(_make_client, session, endpoint, silence, signed=credentials is not None)
    if credentials is None:
        return {**found, "skip_signature": True}, make_client

    def provide() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + KEPT_CREDENTIALS,
        }

    return {**found, "credential_provider": provide}, make_client


def _make_client(session: Any, endpoint: str | None, silence: float, *, signed: bool) -> Any:
    """Return a client of botocore that reaches S3 as obstore does, and leaves trying again to the bucket."""
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        connect_timeout=silence,
        read_timeout=silence,
        max_pool_connections=16,
        retries={"total_max_attempts": 1},
        signature_version=None if signed else UNSIGNED,
        s3={"addressing_style": "path"},
        # Checksums at the end of a body are more than most servers but Amazon's understand.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.create_client("s3", endpoint_url=endpoint or None, config=config)


def _is_web_url(text: str) -> bool:
    with suppress(ValueError):
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    return False


class _ObjectStoreWire:
    """One store of `obstore`, with a connection pool for reading and one for each length of patience when writing."""

    def __init__(
        self,
        traffic: Traffic,
        kind: str,
        settings: Mapping[str, Any],
        folder: str,
        silence: float,
        parts: Multipart | None = None,
    ) -> None:
        self._traffic = traffic
        self._kind = kind
        self._settings = settings
        self._folder = f"{folder}/" if folder else ""
        self._silence = silence
        self._parts = parts
        self._lock = Lock()
        self._writers: dict[int, Any] = {}
        self._reader = self._make(timedelta(hours=6), reading=True)

    def _make(self, whole: timedelta, *, reading: bool) -> Any:
        from obstore import store

        options: dict[str, Any] = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=CONNECT),
            "timeout": whole,
        }
        if reading:  # in an upload the answer comes only after all was sent, and this is about the answer
            options["read_timeout"] = timedelta(seconds=self._silence)
        once = {"max_retries": 0}
        if self._kind == "HTTPStore":
            return store.HTTPStore(self._settings["url"], client_options=options, retry_config=once)  # type: ignore[arg-type]
        return store.S3Store(**self._settings, client_options=options, retry_config=once)  # type: ignore[arg-type]

    def _writer(self, size: int) -> Any:
        """Return a store that waits for an upload of `size` bytes as long as it may take."""
        step = max(0, math.ceil(math.log2(max(size, 1) / (SLOWEST * 16))))
        with self._lock:
            if step not in self._writers:
                seconds = self._silence + (16 << step if step else 0)
                self._writers[step] = self._make(timedelta(seconds=seconds), reading=False)
            return self._writers[step]

    def get(self, key: str, start: int, end: int | None) -> bytes:
        import obstore

        self._traffic.count()
        path = self._folder + key
        try:
            if end is not None:
                return _bounded(obstore.get(self._reader, path, options={"range": (start, end)}), end - start)
            if start:
                return bytes(obstore.get(self._reader, path, options={"range": {"offset": start}}).bytes())
            return bytes(obstore.get(self._reader, path).bytes())
        except Exception as error:
            if self.judge(error).fault is Fault.OUT_OF_RANGE:
                return b""
            raise

    def get_file(self, key: str, path: str) -> int:
        import obstore

        self._traffic.count()
        total = 0
        answer = obstore.get(self._reader, self._folder + key)
        with open(path, "wb") as file:
            for piece in answer.stream(min_chunk_size=PIECE):
                total += file.write(piece)
                self._traffic.arrived(path, total)
        return total

    def put(self, key: str, data: bytes) -> None:
        self._put(key, data, len(data))

    def put_file(self, key: str, path: str) -> int:
        size = os.path.getsize(path)
        if self._parts is not None and size >= MULTIPART_FROM:
            return self._parts.put_file(self._folder + key, path)
        with open(path, "rb") as file:
            if size < _MAPPED:
                self._put(key, file.read(), size)
                return size
            view = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)  # sent without a copy in memory
            try:
                self._put(key, view, size)
            finally:
                with suppress(BufferError):  # an error on the way still holds it: it goes with that
                    view.close()
        return size

    def _put(self, key: str, data: Any, size: int) -> None:
        import obstore

        self._traffic.count()
        obstore.put(self._writer(size), self._folder + key, data, use_multipart=False)

    def stat(self, key: str) -> Stored:
        import obstore

        self._traffic.count()
        return _stored(key, obstore.head(self._reader, self._folder + key))

    def list(self, folder: str) -> Iterator[Stored]:
        import obstore

        prefix = self._folder + folder
        found = 0
        for page in obstore.list(self._reader, prefix or None, chunk_size=LIST_PAGE):
            found += len(page)
            for entry in page:
                yield _stored(str(entry["path"]).removeprefix(self._folder), entry)
        self._traffic.count(requests=max(1, math.ceil(found / LIST_PAGE)))
        if self._parts is not None and _UNFINISHED.startswith(f"{folder}/"):
            for upload in self._parts.unfinished(self._folder):
                key = upload.key.removeprefix(self._folder)
                yield Stored(f"{_UNFINISHED}{upload.name}/{key}", 0, upload.begun)

    def delete(self, keys: Sequence[str]) -> None:
        import obstore

        values = []
        for key in keys:
            if self._parts is not None and key.startswith(_UNFINISHED):
                name, _, goal = key.removeprefix(_UNFINISHED).partition("/")
                self._parts.give_up(self._folder + goal, name)
            else:
                values.append(self._folder + key)
        if values:
            self._traffic.count()
            obstore.delete(self._reader, values)

    def judge(self, error: Exception) -> Judgement:
        if type(error).__module__.partition(".")[0] == "botocore":
            return _judge_botocore(error)
        return judge_words(str(error))


def _stored(key: str, entry: Mapping[str, Any]) -> Stored:
    """Return what obstore says of a value; for a server that does not tell when it was written it says 1970."""
    modified = entry["last_modified"].timestamp() or None
    return Stored(key, int(entry["size"]), modified, plain_etag(entry["e_tag"]))


def _bounded(answer: Any, wanted: int) -> bytes:
    """Return what an answer brings, up to `wanted` bytes: what a server sends beyond that is not waited for."""
    pieces, size = [], 0
    for piece in answer.stream(min_chunk_size=min(wanted, PIECE)):
        pieces.append(bytes(piece))
        size += len(pieces[-1])
        if size >= wanted:
            break
    return b"".join(pieces)[:wanted]


_ANSWER = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_UNKNOWN = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
)


def _judge_answer(code: str, status: int) -> Judgement | None:
    """Return what an answer of S3 means by its code and its HTTP status; None when it has neither."""
    if code in _UNKNOWN:
        return Judgement(Fault.UNKNOWN_USER, f"its credentials do not count ({code})")
    if code == "NoSuchBucket":
        return Judgement(Fault.NO_PLACE, "there is no such bucket")
    if code == NO_SUCH_UPLOAD:  # the next attempt begins anew
        return Judgement(Fault.PASSING, "somebody else ended the upload")
    if code in ("SlowDown", "RequestTimeout", "InternalError"):
        return Judgement(Fault.PASSING, f"the server is busy ({code})")
    if status:
        return judge_status(status, f"the server answers {status}{f' ({code})' if code else ''}")
    return None


def _judge_botocore(error: Exception) -> Judgement:
    from botocore.exceptions import ClientError, ConnectionClosedError

    if isinstance(error, ClientError):
        code = code_of(error)
        return _judge_answer(code, status_of(error)) or Judgement(Fault.OTHER, code or "an answer of no kind")
    if isinstance(error, ConnectionClosedError):
        return Judgement(Fault.PASSING, "the connection broke")
    return judge_exception(error)


def judge_words(words: str) -> Judgement:
    """Return what an exception of obstore means: it tells apart few kinds by type, and all in words."""
    words, _, details = words.partition("Debug source:")
    code = found.group(1) if (found := _CODE.search(words)) else ""
    answer = _ANSWER.search(words)
    if (judged := _judge_answer(code, int(answer.group(1)) if answer else 0)) is not None:
        return judged
    if "Range request not supported" in words:
        return Judgement(Fault.OTHER, "the server sends whole files only, and mlx reads parts of them (byte ranges)")
    if "redirect without LOCATION" in words:
        return Judgement(Fault.OTHER, "the bucket lies in another region: set AWS_REGION")
    if "kind: Connect" in details:
        unknown = "dns error" in details or "failed to lookup" in details
        return Judgement(Fault.UNREACHABLE, "its host is not known" if unknown else "no connection")
    if "kind: Timeout" in details or "TimedOut" in details:
        return Judgement(Fault.PASSING, "it does not answer")
    if "HTTP error" in words:
        return Judgement(Fault.PASSING, "the connection broke")
    return Judgement(Fault.OTHER, " ".join(words.split())[:200])
