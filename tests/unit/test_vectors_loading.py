"""Files and downloads through torchtext: what is read, what is refused and why, and what doesn't stay behind."""

from __future__ import annotations

import gzip
import io
import os
import re
import ssl
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchtext.vocab
from told import told

from sentiment.errors import DataError
from sentiment.observability.log import configure
from sentiment.vectors.loading import default_cache, known_names, load_vectors
from sentiment.vectors.space import PretrainedVectors

ROWS = "the 0.5 1 -2\ncat 1 0 0.25\n, -1 -1e-3 7\n"
MATRIX = [[0.5, 1, -2], [1, 0, 0.25], [-1, -1e-3, 7]]


def check(vectors: PretrainedVectors) -> None:
    assert vectors.words == ["the", "cat", ","]
    assert vectors.matrix_WE.dtype == torch.float32
    torch.testing.assert_close(vectors.matrix_WE, torch.tensor(MATRIX), rtol=0, atol=0)


@pytest.mark.parametrize("text", [ROWS, ROWS[:-1], "3 3\n" + ROWS, ROWS.replace("\n", " \r\n")])
def test_local_file(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.txt"
    path.write_bytes(text.encode())
    vectors = load_vectors(str(path))
    check(vectors)
    assert vectors.name == "small.txt"
    assert capfd.readouterr().err == ""


def test_local_file_compressed(tmp_path: Path) -> None:
    path = tmp_path / "small.txt.gz"
    path.write_bytes(gzip.compress(ROWS.encode()))
    check(load_vectors(str(path)))


def test_a_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "small.txt").write_text(ROWS)
    check(load_vectors("~/small.txt"))


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_text(ROWS.replace("cat", "dog"))
    assert "dog" in load_vectors(str(path))
    path.write_text(ROWS)
    check(load_vectors(str(path)))
    assert [file.name for file in tmp_path.iterdir()] == ["small.txt"]


def test_words_stay_as_they_are_and_the_first_of_two_rows_counts(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("a\u00a0b 1 2 3\ncafé 4 5 6\ncat 7 8 9\ncat 0 0 0\n😂 1 1 1\n", encoding="utf-8")
    vectors = load_vectors(str(path))
    assert vectors.words == ["a\u00a0b", "café", "cat", "😂"]
    assert vectors.matrix_WE.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]]


def _zipped(text: str = ROWS) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("glove.6B.50d.txt", text)
        archive.writestr("glove.6B.100d.txt", "wide 1 2 3 4\n")
    return buffer.getvalue()


BROKEN = {
    "empty": (b"", "has no rows"),
    "header": (b"3 3\n", "has no rows"),
    "wider": (ROWS.encode() + b"dog 1 2 3 4\n", "line 4 has 4 numbers, line 1 has 3"),
    "cut": (ROWS.encode()[:-3] + b"\n", "line 3 has 2 numbers"),
    "blank": (ROWS.encode() + b"\n", "line 4 has 0 numbers"),
    "one_dimensional": (b"a 1\nb 2\n", "line 2 has 1 numbers"),
    "stray_one": (ROWS.encode() + b"dog 1\n", "line 4 has 1 numbers"),
    "prose": (b"There are only words in here\nbut as many on each line\n", "line 1 holds something else"),
    "letters": (ROWS.encode() + b"dog 1 x 3\n", "line 4 holds something else than finite numbers"),
    "nan": (ROWS.encode() + b"dog 1 nan 3\n", "line 4 holds something else than finite numbers"),
    "overflow": (ROWS.encode() + b"dog 1 1e39 3\n", "line 4 holds something else than finite numbers"),
    "latin": (ROWS.encode() + b"caf\xe9 1 2 3\n", "line 4 is not UTF-8"),
    "binary": (bytes(range(256)) * 100, "binary file"),
    "word2vec": (b"3 100\nin \0\1\2\3 4 5 6\n", "binary file"),
    "archive.zip": (_zipped(), "zip archive: unpack it"),
    "no.gz": (b"text", r"can't be read \(Not a gzipped file"),
    "cut.gz": (gzip.compress(ROWS.encode())[:-12], "can't be read"),
    "bits.gz": (gzip.compress(ROWS.encode() * 9)[:10] + b"\xff" * 60, "can't be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^vectors {re.escape(str(path))}: .*{reason}.*; expected text as GloVe"):
        load_vectors(str(path))


def test_neither_file_nor_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a file nor a known name.*did you mean glove.6B.50d or"):
        load_vectors("glove.6B.5d")
    with pytest.raises(DataError, match=r"did you mean glove\.6B\.100d"):
        load_vectors(str(tmp_path / "glove.6B.100d.txt"))
    with pytest.raises(DataError, match=r"no vectors 'qqqqq'.*names are fasttext\.en\.300d, .*glove\.twitter"):
        load_vectors("qqqqq")
    with pytest.raises(DataError, match="is a folder"):
        load_vectors(str(tmp_path))
    assert "charngram.100d" not in known_names()


def test_the_default_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == tmp_path / ".cache/sentiment-at-scale/vectors"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg/sentiment-at-scale/vectors"


class Site:
    """Serves `body` under every address, as `fault` says; and can be switched off."""

    def __init__(self) -> None:
        self.body, self.fault, self.requests = _zipped(), "", 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests += 1
                self.send_response(404 if site.fault == "missing" else 200)
                if site.fault != "cut without length":
                    self.send_header("Content-Length", str(len(site.body)))
                self.end_headers()
                self.wfile.write(site.body[: len(site.body) // 2] if "cut" in site.fault else site.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/glove.6B.zip"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    site = Site()
    monkeypatch.setitem(torchtext.vocab.GloVe.url, "6B", site.url)
    yield site
    site.stop()


def test_a_name_is_downloaded_once(tmp_path: Path, site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    configure("vectors")
    cache = tmp_path / "new" / "cache"
    vectors = load_vectors("glove.6B.50d", cache=cache)
    check(vectors)
    assert vectors.name == "glove.6B.50d"
    site.stop()
    check(load_vectors("glove.6B.50d", cache=cache))
    # The archive held the other widths too.
    assert load_vectors("glove.6B.100d", cache=cache).words == ["wide"]
    assert site.requests == 1
    expected = ["glove.6B.100d.txt", "glove.6B.100d.txt.pt", "glove.6B.50d.txt", "glove.6B.50d.txt.pt"]
    assert sorted(path.name for path in cache.iterdir()) == expected
    assert not any(path.is_symlink() for path in cache.iterdir())
    err = capfd.readouterr().err
    assert err.startswith("loading vectors glove.6B.50d…\n")
    assert told(err) == "", "no bars and no log lines of torchtext"


def test_downloads_go_to_the_default_cache(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    check(load_vectors("glove.6B.50d"))
    assert (default_cache() / "glove.6B.50d.txt").is_file()


@pytest.mark.parametrize("fault", ["cut", "cut without length", "missing", "not a zip", "bad rows"])
def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, site: Site, fault: str) -> None:
    site.fault, whole = fault, site.body
    if fault == "not a zip":
        site.body = b"<html>Please log in to this network</html>"
    if fault == "bad rows":
        site.body = _zipped(ROWS + "dog 1\n" * 2 + "dog 1 2\n")
    with pytest.raises(DataError, match=r"glove\.6B\.50d.*give a local file in GloVe's text format with --vectors or"):
        load_vectors("glove.6B.50d", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    site.fault, site.body = "", whole
    check(load_vectors("glove.6B.50d", cache=tmp_path))


def test_a_partial_archive_of_another_program_does_no_harm(tmp_path: Path, site: Site) -> None:
    (tmp_path / "glove.6B.zip").write_bytes(site.body[:100])
    check(load_vectors("glove.6B.50d", cache=tmp_path))


def test_a_file_in_the_working_directory_does_not_get_into_the_cache(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "glove.6B.50d.txt").write_text("mine 1 2 3\n")
    monkeypatch.chdir(tmp_path / "here")
    assert load_vectors("glove.6B.50d", cache=tmp_path / "cache").words == ["mine"]
    monkeypatch.chdir(tmp_path)
    check(load_vectors("glove.6B.50d", cache=tmp_path / "cache"))


def test_no_network(tmp_path: Path, site: Site) -> None:
    site.stop()
    with pytest.raises(DataError, match=r"'glove.6B.50d' can't be fetched into .*refused.*--glove PATH"):
        load_vectors("glove.6B.50d", cache=tmp_path)


def test_a_damaged_cache_is_named(tmp_path: Path, site: Site) -> None:
    for name in ("glove.6B.50d.txt", "glove.6B.50d.txt.pt"):
        (tmp_path / name).write_text("a 1 2 3\nb 1 2")
        with pytest.raises(DataError, match=rf"{name} is damaged .*delete that file and try again"):
            load_vectors("glove.6B.50d", cache=tmp_path)
    assert site.requests == 0


def test_a_cached_pickle_is_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save(Hostile(), tmp_path / "glove.6B.50d.txt.pt")
    with pytest.raises(DataError, match="damaged"):
        load_vectors("glove.6B.50d", cache=tmp_path)
    assert not (tmp_path / "owned").exists()


def test_certificates_are_checked_while_loading_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (ssl._create_default_https_context, ssl._create_unverified_context)
    seen = []

    def fetch(*_: object, **__: object) -> None:
        seen.append(ssl._create_default_https_context())
        raise URLError("no way out")

    monkeypatch.setattr(torchtext.vocab, "urlretrieve", fetch)
    with pytest.raises(DataError, match="no way out"):
        load_vectors("fasttext.simple.300d", cache=tmp_path)
    assert [(context.verify_mode, context.check_hostname) for context in seen] == [(ssl.CERT_REQUIRED, True)]
    path = tmp_path / "small.txt"
    path.write_text(ROWS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(load_vectors, [str(path)] * 8):
            check(vectors)
    assert (ssl._create_default_https_context, ssl._create_unverified_context) == before
