"""An S3 store in memory that counts requests: how many a shard, an input file, a resumed run and the last check take.

It knows what pyarrow asks of it and no more, listens on loopback, and keeps nothing.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq

from sentiment.corpora.folder import Folder
from sentiment.corpora.parts import Part, PartWriter, Report, ShardReport, check_parts, read_reports
from sentiment.corpora.planning import plan
from sentiment.corpora.shards import group_shards, shard_name, shards_of
from sentiment.schema import SCORED

_TAG = "0123456789ab"
_TIME = "Sun, 22 Nov 2026 12:00:00 GMT"


class Store:
    """The objects, and the requests by kind since the count was last taken."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self._requests: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, kind: str) -> None:
        """Note a request."""
        with self._lock:
            self._requests[kind] += 1

    def taken(self) -> dict[str, int]:
        """Requests by kind; counting begins anew."""
        with self._lock:
            found, self._requests = self._requests, Counter()
        return dict(sorted(found.items()))


@contextmanager
def served() -> Iterator[tuple[Store, str]]:
    """A store and its address, for a `with` block."""
    store = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    thread = threading.Thread(target=server.serve_forever, name="store", daemon=True)
    thread.start()
    try:
        yield store, f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        path, query = self._asked()
        if "list-type" in query:
            self.store.count("LIST")
            self._answer(200, self._listing(path, query))
        elif path in self.store.objects:
            self.store.count("GET")
            content, ranged = self.store.objects[path], self.headers.get("Range")
            first, last = 0, len(content) - 1
            if ranged:
                begin, end = ranged.removeprefix("bytes=").split("-")
                first, last = int(begin), min(last, int(end or last))
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"} if ranged else {}
            self._answer(206 if ranged else 200, content[first : last + 1], headers)
        else:
            self.store.count("GET")
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        path, _ = self._asked()
        self.store.count("HEAD")
        is_bucket = "/" not in path.rstrip("/")
        if is_bucket or path in self.store.objects:
            self._answer(200, b"", {"Content-Length": str(len(self.store.objects.get(path, b"")))})
        else:
            self._answer(404, b"", {"Content-Length": "0"})

    def do_PUT(self) -> None:
        path, query = self._asked()
        body = self._body()
        source = self.headers.get("x-amz-copy-source")
        if source:
            self.store.count("COPY")
            self.store.objects[path] = self.store.objects[unquote(source).lstrip("/")]
            self._answer(200, "<CopyObjectResult><ETag>1</ETag></CopyObjectResult>")
            return
        self.store.count("PUT")
        if "partNumber" in query:
            self.store.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            self.store.objects[path] = body
        self._answer(200, b"", {"ETag": '"1"'})

    def do_POST(self) -> None:
        path, query = self._asked()
        body = self._body()
        self.store.count("POST")
        if "uploads" in query:
            number = str(len(self.store.uploads))
            self.store.uploads[number] = {}
            told = f"<UploadId>{number}</UploadId>"
            self._answer(200, f"<InitiateMultipartUploadResult>{told}</InitiateMultipartUploadResult>")
        elif "uploadId" in query:
            parts = self.store.uploads.pop(query["uploadId"][0])
            self.store.objects[path] = b"".join(parts[number] for number in sorted(parts))
            self._answer(200, "<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>")
        else:
            for name in body.decode().split("<Key>")[1:]:
                self.store.objects.pop(f"{path.split('/')[0]}/{name.split('</Key>')[0]}", None)
            self._answer(200, "<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        self.store.count("DELETE")
        self.store.objects.pop(path, None)
        self._answer(204, b"")

    def _listing(self, path: str, query: dict[str, list[str]]) -> str:
        bucket, prefix = path.split("/", maxsplit=1)[0], query.get("prefix", [""])[0]
        names = sorted(
            name.removeprefix(f"{bucket}/") for name in self.store.objects if name.startswith(f"{bucket}/{prefix}")
        )
        delimiter, folders = query.get("delimiter", [""])[0], set()
        if delimiter:
            below = {name: name[len(prefix) :].split(delimiter) for name in names}
            folders = {f"{prefix}{parts[0]}{delimiter}" for parts in below.values() if len(parts) > 1}
            names = [name for name, parts in below.items() if len(parts) == 1]
        start = int(query.get("continuation-token", ["0"])[0])
        most = int(query.get("max-keys", ["1000"])[0])
        here, more = names[start : start + most], start + most < len(names)
        files = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-11-22T12:00:00.000Z</LastModified>"
            f"<Size>{len(self.store.objects[f'{bucket}/{name}'])}</Size></Contents>"
            for name in here
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        token = f"<NextContinuationToken>{start + most}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(here) + len(folders)}"
            f"</KeyCount>{token}{files}{common}</ListBucketResult>"
        )

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        # Within that the signed form of S3, whose last chunk is empty and followed by a checksum.
        content = b""
        while (head := body.partition(b"\r\n"))[0] != b"0":
            size, body = int(head[0], 16), head[2]
            content, body = content + body[:size], body[size + 2 :]
        return content

    def _answer(self, status: int, content: bytes | str, headers: dict[str, Any] | None = None) -> None:
        body = content.encode() if isinstance(content, str) else content
        told = {"Content-Length": str(len(body)), "Last-Modified": _TIME, "ETag": '"1"', **(headers or {})}
        self.send_response(status)
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def requests(folder: Path, count: int = 40) -> dict[str, Any]:
    """Requests of each kind that a file or shard takes.

    Args:
        folder: For a small Parquet file.
        count: Input files, and shards.
    """
    one = folder / "one.parquet"
    pq.write_table(pa.table({"id": range(500), "text": ["some text"] * 500}), one)
    os.environ.update(AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="nothing", AWS_EC2_METADATA_DISABLED="true")
    with served() as (store, address):
        where = f"endpoint_override={address}&scheme=http&region=nowhere"
        for number in range(count):
            store.objects[f"bucket/archive/{number:06}.parquet"] = one.read_bytes()
        figures: dict[str, Any] = {"count": count}
        reads = plan([f"s3://bucket/archive?{where}"])
        figures["plan"] = store.taken()
        for group in group_shards(reads, 1_000):
            rows = sum(shard.table.num_rows for shard in shards_of(group, reads))
            assert rows == 500 * len(group.files)
        figures["read"] = store.taken()
        output, parts = Folder(f"s3://bucket/scored?{where}"), _write(f"s3://bucket/scored?{where}", one, count)
        figures["shard"] = store.taken()
        assert len(read_reports(output, _TAG)) == count
        figures["report"] = store.taken()
        check_parts(output, (SCORED,), parts)
        figures["check"] = store.taken()
    return figures


def _write(uri: str, one: Path, shards: int) -> dict[str, Part]:
    """Write shards with their reports, as actors do; returns the files."""
    table = pq.read_table(one)
    writer = PartWriter(Folder(uri), _TAG, {SCORED: table.schema})
    parts: dict[str, Part] = {}
    for number in range(shards):
        name = shard_name(number, 0)
        report = Report(scored=table.num_rows, parts=writer.write(name, {SCORED: table}))
        parts |= report.parts
        writer.report(name, ShardReport(number, 0, True, report))
    return parts
