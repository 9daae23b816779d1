"""A web server for tests: files of a folder, whole or by range, ignoring what follows "?" in their addresses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@contextmanager
def served(folder: Path, *, sized: bool = True, parts: bool = True) -> Iterator[str]:
    """The address at which a folder is served.

    sized: whether the server says how many bytes a file has. parts: whether it sends ranges of one.
    """
    handler = type("Handler", (_Handler,), {"folder": folder, "sized": sized, "parts": parts and sized})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    sized: bool
    parts: bool

    def do_GET(self) -> None:
        path = self.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = self.headers.get("Range") if self.parts else None
        if asked is None:
            self.send_response(200)
        else:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            if int(first) >= len(content):
                self.send_error(416)
                return
            last = min(int(last or len(content)), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[int(first) : last + 1]
        if self.parts:
            self.send_header("Accept-Ranges", "bytes")
        if self.sized:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *words: object) -> None:
        """Nothing is said."""
