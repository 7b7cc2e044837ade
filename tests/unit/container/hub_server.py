"""A Hugging Face Hub on the loopback interface: one repository, and faults on request."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

COMMIT = "c0ffee" + "0" * 34
REPO = "owner/name"


class FakeHub:
    """`files` is what COMMIT holds. `faults` maps a path to statuses answered before the right answer."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: dict[str, list[int]] = {}
        self.corrupt: set[str] = set()
        self.cut_once: set[str] = set()
        self.elsewhere: str | None = None
        """Address of another host to which large files are redirected, as the Hub does."""
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = handler.path.split("?")[0]
        self.requests.append((path, handler.headers.get("Authorization", "")))
        statuses = self.faults.get(path, [])
        if statuses:
            _send(handler, statuses.pop(0), b"{}", {}, with_body=with_body)
            return
        if path in (
            f"/api/models/{REPO}",
            f"/api/models/{REPO}/revision/main",
            f"/api/models/{REPO}/revision/{COMMIT}",
        ):
            _send(handler, 200, json.dumps(self._info()).encode(), {}, with_body=with_body)
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            _send(handler, 200, json.dumps(self._tree()).encode(), {}, with_body=with_body)
        elif path.startswith(f"/{REPO}/resolve/") and path.split("/", 5)[-1] in self.files:
            self._send_file(handler, path.split("/", 5)[-1], with_body=with_body)
        elif "/revision/" in path:
            _send(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
        else:
            _send(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)

    def _send_file(self, handler: BaseHTTPRequestHandler, name: str, *, with_body: bool) -> None:
        content = self.files[name]
        headers = {"ETag": f'"{_etag(name, content)}"', "X-Repo-Commit": COMMIT}
        if self.elsewhere and name.endswith(".safetensors"):
            headers |= {"Location": self.elsewhere + handler.path, "X-Linked-ETag": headers["ETag"]}
            headers["X-Linked-Size"] = str(len(content))
            _send(handler, 302, b"", headers, with_body=with_body)
            return
        if name in self.cut_once and with_body:
            self.cut_once.remove(name)
            _send(
                handler, 200, content[: len(content) // 2], headers, with_body=True, missing=len(content) // 2
            )
            return
        if name in self.corrupt:
            content = bytes(len(content))
        _send(handler, 200, content, headers, with_body=with_body)

    def _info(self) -> dict[str, object]:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
        return {"id": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _etag(name, content)}
            for name, content in self.files.items()
        ]


def _etag(name: str, content: bytes) -> str:
    """Large files go by their SHA-256, others by a git hash."""
    return (hashlib.sha256 if name.endswith(".safetensors") else hashlib.sha1)(content).hexdigest()


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str],
    *,
    with_body: bool,
    missing: int = 0,
) -> None:
    """`missing` bytes are announced and never come."""
    handler.send_response(status)
    for name, value in {
        **headers,
        "Content-Type": "application/json",
        "Content-Length": str(len(body) + missing),
    }.items():
        handler.send_header(name, value)
    handler.end_headers()
    if with_body:
        handler.wfile.write(body)
    if missing:
        handler.close_connection = True
