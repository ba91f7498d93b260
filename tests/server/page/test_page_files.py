"""How the files of the chat page are served: by exact name, under a strict policy, to everybody."""

import re
from importlib.resources import files

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from smollm3.server.page.files import page_paths, page_routes

PAGE = files("smollm3.server.page")


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=list(page_routes())))


def test_every_path_is_served_with_its_type_and_a_strict_policy(client: TestClient) -> None:
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path in sorted(page_paths()):
        response = client.get(path)
        kind = "html" if path == "/" else path.rsplit(".", 1)[1]
        assert response.status_code == 200, path
        assert response.headers["content-type"].startswith(kinds[kind]), path
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = dict(
            part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert policy["img-src"] == "'self' data:"
        assert policy["require-trusted-types-for"] == "'script'"


def test_a_browser_that_has_a_file_is_told_so(client: TestClient) -> None:
    tag = client.get("/").headers["etag"]
    again = client.get("/", headers={"If-None-Match": f'W/"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/files.py",
        "/page/",
        "/page/../files.py",
        "/page/%2e%2e/app.py",
        "/index.html",
        "/page/nothing.js",
    ],
)
def test_nothing_but_the_page_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_only_reading_is_allowed(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/").status_code == 405


def test_the_page_names_only_files_it_has_and_no_other_host(client: TestClient) -> None:
    html = client.get("/").text
    named = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert {f"/{name}" for name in named} | {"/"} == page_paths(), "a file is not named, so it comes late"
    for name in named:
        assert client.get(f"/{name}").status_code == 200, name
    assert not re.search(r"<(script|style)>|\sstyle=|\son\w+=|javascript:", html)


def test_no_file_of_the_page_builds_markup_from_text() -> None:
    for file in PAGE.iterdir():
        if file.name.endswith(".js"):
            text = file.read_text()
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function",
                text,
            ), file.name
            assert len(text.splitlines()) <= 300, file.name


def test_the_response_to_head_has_no_body(client: TestClient) -> None:
    response: httpx.Response = client.head("/")
    assert response.status_code == 200
    assert response.content == b""
