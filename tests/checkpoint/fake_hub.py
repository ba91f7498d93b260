"""A hub of one repository on the loopback: what the client asks for is written down."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
REPOSITORY = "owner/model"
FILES = {
    "config.json": b'{"from": "hub"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ 1 }}",
    "merges.txt": b"a b",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "training_args.pt": b"pickle",
    "modeling_evil.py": b"code",
    "README.md": b"card",
    "onnx/model.safetensors": b"copy",
    "inner/config.json": b'{"from": "inner"}',
    "inner/model.safetensors": b"inner weights",
    "model.Q4_0.gguf": b"GGUF",
}


@dataclass
class FakeHub:
    """Where it listens, and the requests it got as (method, path, Authorization)."""

    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    error: tuple[int, str] | None = None
    elsewhere: str = ""  # where weights are kept: asked for them, the hub sends the client there

    def downloaded(self) -> set[str]:
        paths = {path for method, path, _ in self.requests if "/resolve/" in path and method == "GET"}
        return {path.split("/", 5)[5] for path in paths}


@contextmanager
def fake_hub(files: Mapping[str, bytes] = FILES) -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Authorization")))
            if hub.error is not None and path.startswith(("/api/models", f"/{REPOSITORY}")):
                self.reply(hub.error[0], b"{}", {"X-Error-Code": hub.error[1]})
            elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
                entries = [
                    {"type": "file", "path": f, "size": len(b), "oid": "0" * 40} for f, b in files.items()
                ]
                self.reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                info = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "private": False, "tags": []}
                info["siblings"] = [{"rfilename": name} for name in files]
                self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/{REPOSITORY}/resolve/") and path.split("/", 5)[5] in files:
                name = path.split("/", 5)[5]
                etag = '"' + name.replace("/", "_") + '"'
                if hub.elsewhere and name.endswith(".safetensors"):
                    there = {"Location": hub.elsewhere + self.path, "X-Linked-Size": str(len(files[name]))}
                    self.reply(302, b"", {**there, "X-Linked-Etag": etag, "X-Repo-Commit": COMMIT})
                    return
                self.reply(200, files[name], {"ETag": etag, "X-Repo-Commit": COMMIT})
            else:
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
