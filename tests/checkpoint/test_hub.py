"""Names into paths: the local wins, the hub sends data only, and what fails says the way out."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub
from huggingface_hub import constants

from smollm3.checkpoint.hub import DEFAULT_MODEL, SMALL_MODEL, cache_folder, resolve
from smollm3.checkpoint.small_models import SMALL_MODELS
from smollm3.errors import ModelNotFoundError, ParameterError

NOBODY = "http://127.0.0.1:9"  # an address at which nobody listens: the same as no network


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as server:
        use_endpoint(monkeypatch, server.url)
        yield server


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, NOBODY)


def failing(name: str | os.PathLike[str], **where: Any) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name, **where)
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, OSError), "what callers of other libraries catch"
    return message


# Local


def test_paths_win_over_every_other_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (SMALL_MODEL, DEFAULT_MODEL, "folder"):
        Path(name).mkdir(parents=True)
        assert resolve(name) == Path(name)
    Path("file.gguf").touch()
    assert resolve("file.gguf") == Path("file.gguf")
    assert resolve(tmp_path / "folder") == tmp_path / "folder"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/folder") == tmp_path / "folder"


def test_a_subfolder_of_a_local_model(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert resolve(tmp_path, subfolder="a/b") == tmp_path / "a" / "b"
    assert "'c'" in failing(tmp_path, subfolder="c")
    for outside in ("..", "a/../..", "/etc", "a\\..\\.."):
        with pytest.raises(ParameterError, match="subfolder"):
            resolve(tmp_path, subfolder=outside)


@pytest.mark.parametrize(
    "typo", ["{}/modle", "{}/modle/inner", "{}/model.ggfu", "./no/such/model", "no/such/deep/model"]
)
def test_a_mistyped_path_is_met_with_its_neighbour(typo: str, tmp_path: Path, no_hub: None) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model.gguf").touch()
    message = failing(typo.format(tmp_path))
    assert "hub" not in message
    if "{" in typo:
        assert "did you mean" in message
        assert str(tmp_path / "model") in message


def test_a_path_object_is_never_a_hub_name(tmp_path: Path, no_hub: None) -> None:
    assert "no file or folder" in failing(Path("owner/name"))
    assert "no file or folder" in failing(Path(SMALL_MODEL + "x"))


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name(name: str) -> None:
    with pytest.raises(ParameterError, match="no model"):
        resolve(name)


# Names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smolm2-135m", "smollm2-135m"),
        ("SmolLM2-135", "smollm2-135m"),
        ("SmolLM3-3B", DEFAULT_MODEL),
        ("smollm3-3b", DEFAULT_MODEL),
    ],
)
def test_a_mistyped_short_name_is_met_with_the_right_one(name: str, meant: str, no_hub: None) -> None:
    message = failing(name)
    assert f"did you mean {meant}?" in message
    assert SMALL_MODEL in message


@pytest.mark.parametrize(
    "name", ["gpt2", "a b/c", "owner/", "owner/na me", "owner//name", "o:x/y", "größe/x y"]
)
def test_names_that_can_be_nothing(name: str, no_hub: None) -> None:
    failing(name)


# The hub


def test_the_hub_sends_data_and_never_pickles_or_code(hub: FakeHub, tmp_path: Path) -> None:
    folder = resolve(REPOSITORY, cache_dir=tmp_path)
    assert (folder / "config.json").read_bytes() == b'{"from": "hub"}'
    expected = {"config.json", "tokenizer.json", "chat_template.jinja", "merges.txt", "model.safetensors"}
    assert hub.downloaded() == expected | {"inner/config.json"}
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert not left & {".bin", ".pt", ".py", ".md"}


def test_configs_and_tokenizers_come_without_weights(hub: FakeHub, tmp_path: Path) -> None:
    folder = resolve(REPOSITORY, cache_dir=tmp_path, weights=False)
    assert not (folder / "model.safetensors").exists()
    assert (folder / "tokenizer.json").exists()
    assert (resolve(REPOSITORY, cache_dir=tmp_path) / "model.safetensors").exists()


def test_a_subfolder_of_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    folder = resolve(REPOSITORY, cache_dir=tmp_path, subfolder="inner")
    assert folder.name == "inner"
    assert (folder / "model.safetensors").read_bytes() == b"inner weights"
    assert hub.downloaded() == {"inner/config.json", "inner/model.safetensors"}


def test_one_gguf_of_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    path = resolve(f"{REPOSITORY}/model.Q4_0.gguf", cache_dir=tmp_path)
    assert path.read_bytes() == b"GGUF"
    assert hub.downloaded() == {"model.Q4_0.gguf"}
    assert "other.gguf" in failing(f"{REPOSITORY}/other.gguf", cache_dir=tmp_path)


def test_the_token_and_revision_are_passed_on(hub: FakeHub, tmp_path: Path) -> None:
    resolve(REPOSITORY, cache_dir=tmp_path, token="secret", revision="v1.0")
    asked = [(path, token) for _, path, token in hub.requests if "revision" in path]
    assert asked == [(f"/api/models/{REPOSITORY}/revision/v1.0", "Bearer secret")]


def test_case_47_the_token_does_not_follow_to_another_host(hub: FakeHub, tmp_path: Path) -> None:
    with fake_hub() as store:
        hub.elsewhere = store.url.replace("127.0.0.1", "localhost")
        folder = resolve(REPOSITORY, cache_dir=tmp_path, token="secret")
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        assert store.downloaded() == {"model.safetensors"}
        assert {token for _, _, token in store.requests} == {None}
    assert ("GET", f"/{REPOSITORY}/resolve/{COMMIT}/config.json", "Bearer secret") in hub.requests


def test_what_was_downloaded_is_found_without_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve(REPOSITORY, cache_dir=tmp_path)
    use_endpoint(monkeypatch, NOBODY)
    assert resolve(REPOSITORY, cache_dir=tmp_path) == folder
    assert resolve(REPOSITORY, cache_dir=tmp_path, local_files_only=True) == folder
    assert resolve(REPOSITORY, cache_dir=tmp_path, revision=COMMIT, local_files_only=True) == folder
    message = failing(REPOSITORY, cache_dir=tmp_path, revision="other", local_files_only=True)
    assert "local_files_only" in message


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "the hub has no model"),
        (401, "RepoNotFound", "the hub has no model"),
        (403, "GatedRepo", "gated"),
        (404, "RevisionNotFound", "no revision 'v9'"),
    ],
)
def test_the_hubs_refusals_are_one_line(
    status: int, code: str, said: str, hub: FakeHub, tmp_path: Path
) -> None:
    hub.error = (status, code)
    message = failing(REPOSITORY, cache_dir=tmp_path, revision="v9")
    assert said in message
    assert REPOSITORY in message


def test_no_network_and_nothing_cached_names_the_small_model_at_once(no_hub: None, tmp_path: Path) -> None:
    for name in (DEFAULT_MODEL, "owner/x.gguf/file.gguf"):
        begin = time.monotonic()
        message = failing(name, cache_dir=tmp_path)
        assert time.monotonic() - begin < 5
        assert name in message
        assert "cannot be reached" in message
        assert SMALL_MODEL in message


def test_no_bar_is_drawn_where_there_is_no_terminal(
    hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    resolve(REPOSITORY, cache_dir=tmp_path)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_the_hubs_environment_variables_keep_their_meaning(tmp_path: Path) -> None:
    code = f"from smollm3.checkpoint.hub import resolve; print(resolve({REPOSITORY!r}))"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}

    def run(**env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env={**clean, **env}, capture_output=True, text=True, timeout=60, check=False
        )

    with fake_hub() as server:
        home = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "from-env"}
        done = run(**home)
        assert done.stdout.strip().startswith(str(tmp_path / "home" / "hub")), done.stderr
        assert "Bearer from-env" in {token for _, path, token in server.requests if "/api/models" in path}
        asked = len(server.requests)
        done = run(**home, HF_HUB_OFFLINE="1")
        assert done.stdout.strip().startswith(str(tmp_path / "home" / "hub")), done.stderr
        done = run(**home, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "other"))
        assert "HF_HUB_OFFLINE" in done.stderr
        assert SMALL_MODEL in done.stderr
        assert len(server.requests) == asked


# The cache of small models


def test_where_small_models_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("SMOLLM3_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/ada/.cache/smollm3")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "smollm3"
    monkeypatch.setenv("SMOLLM3_CACHE", "~/models")
    assert cache_folder() == Path("/home/ada/models")


def test_a_short_name_is_one_file_of_one_version(small_model: Path) -> None:
    assert small_model.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert resolve(SMALL_MODEL.upper()) == small_model
    assert resolve(SMALL_MODEL, revision="main") == small_model
    for where in ({"revision": "v2"}, {"subfolder": "inner"}):
        with pytest.raises(ParameterError, match=SMALL_MODEL):
            resolve(SMALL_MODEL, **where)  # type: ignore[arg-type]


def test_the_second_time_is_quick(small_model: Path) -> None:
    begin = time.perf_counter()
    assert resolve(SMALL_MODEL, local_files_only=True) == small_model
    assert time.perf_counter() - begin < 0.05, "98 MB must not be read again"
    assert set(SMALL_MODELS) == {SMALL_MODEL}
