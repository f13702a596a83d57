"""Priors from a hub: the real client of huggingface_hub against a small server on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import HfApi

from invdiff.cli.main import main
from invdiff.errors import CheckpointError
from invdiff.priors import load_prior
from invdiff.priors.stored import hub

TOKEN = "hf_of_the_test"


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub's HTTP interface as its client uses to create a model, upload a folder and download it.

    repositories: name -> {path: bytes}; large files travel as on the hub: a batch request, then a PUT of the bytes.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.uploads: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.asked: list[str] = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, name):
        files = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repositories[name].items())
        return hashlib.sha1(json.dumps(files).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, text):
        self.answer(status, {"error": text}, X_Error_Code=code, X_Error_Message=text)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def handle_request(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        content = self.body() if self.command in ("POST", "PUT") else b""
        if self.command in ("POST", "PUT") and parts[0] != "storage" and self.token != TOKEN:
            return self.refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(content))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if parts[0] == "storage":
            if hashlib.sha256(content).hexdigest() != parts[1]:
                return self.refuse(400, "", "wrong hash")
            self.server.uploads[parts[1]] = content
            return self.answer(200)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(content))
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        if name not in self.server.repositories or (self.server.private[name] and self.token != TOKEN):
            return self.refuse(401, "RepoNotFound", "Repository not found")
        rest = parts[4:] if parts[0] == "api" else parts[2:]
        if rest[:1] == ["preupload"]:
            files = json.loads(content)["files"]
            modes = [{"path": f["path"], "shouldIgnore": False} for f in files]
            for mode in modes:
                mode["uploadMode"] = "lfs" if mode["path"].endswith((".safetensors", ".bin", ".png")) else "regular"
            return self.answer(200, {"files": modes})
        if rest[:1] == ["commit"]:
            return self.commit(name, content)
        if rest[:1] == ["tree"]:
            return self.answer(200, self.tree(name))
        if rest[:1] == ["resolve"]:
            return self.resolve(name, "/".join(rest[2:]))
        siblings = [{"rfilename": file} for file in self.server.repositories[name]]
        sha = self.server.sha(name)
        return self.answer(200, {"id": name, "modelId": name, "sha": sha, "siblings": siblings, "private": False})

    do_GET = do_POST = do_PUT = do_HEAD = handle_request

    def create(self, wanted):
        owner = wanted.get("organization") or "me"
        name = f"{owner}/{wanted['name']}"
        if owner != "me":
            return self.refuse(403, "", f"You don't have the rights to create a model under {owner}")
        if name in self.server.repositories:
            return self.answer(409, {"url": f"{self.server.address}/{name}", "error": "exists"})
        self.server.repositories[name] = {}
        self.server.private[name] = wanted.get("private") or wanted.get("visibility") == "private" or False
        return self.answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})

    def batch(self, wanted):
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.address}/storage/{item['oid']}", "header": {}}}}
            for item in wanted["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name, content):
        for line in content.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.server.commits.append(value["summary"])
            elif item["key"] == "file":
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                self.server.repositories[name][value["path"]] = self.server.uploads[value["oid"]]
        url = f"{self.server.address}/{name}/commit/main"
        return self.answer(200, {"commitUrl": url, "commitOid": self.server.sha(name), "success": True})

    def tree(self, name):
        return [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in self.server.repositories[name].items()
        ]

    def resolve(self, name, path):
        data = self.server.repositories[name].get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X_Repo_Commit": self.server.sha(name), "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        return self.answer(200, data, **headers)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub, and the client pointed at it: nothing can leave this machine."""
    pytest.importorskip("huggingface_hub", minversion="1.0")  # older ones do not follow a changed address
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prior as invdiff writes it, with a model card and a picture."""
    from test_loading import make_unet, save

    folder = tmp_path_factory.mktemp("prior") / "tiny"
    save(folder, make_unet(), prediction_type="v_prediction")
    (folder / "README.md").write_text("# tiny\n\n![curve](curve.png)\n")
    (folder / "curve.png").write_bytes(b"\x89PNG")
    return folder


def upload(folder, name, private=False):
    """As `hf upload` does it."""
    api = HfApi()
    api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder, commit_message="A prior")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class TestFetching:
    def test_what_comes_back_is_what_went_up(self, server, folder, tmp_path):
        result = invoke("prior", "export", folder, "-o", tmp_path / "exported")
        assert result.exit_code == 0, result.output
        upload(tmp_path / "exported", "me/tiny")
        files = server.repositories["me/tiny"]
        assert set(files) == {
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "scheduler/scheduler_config.json",
            "README.md",
            "curve.png",
        }
        assert files["README.md"] == (folder / "README.md").read_bytes()
        here, there = (load_prior(str(source), device="cpu", precision="fp32") for source in (folder, "me/tiny"))
        x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(here.denoise(x, 0.1), there.denoise(x, 0.1))
        assert there.prediction == "v_prediction" and there.name == "me/tiny"
        result = invoke("prior", "import", "me/tiny", "-o", tmp_path / "back")
        assert result.exit_code == 0, result.output
        facts = json.loads((tmp_path / "back/provenance.json").read_text())
        assert facts["source"] == "me/tiny" and facts["commit"] == server.sha("me/tiny")
        assert (tmp_path / "back/README.md").read_bytes() == files["README.md"]
        back = load_prior(tmp_path / "back", device="cpu", precision="fp32")
        assert torch.equal(here.denoise(x, 0.1), back.denoise(x, 0.1))

    def test_only_what_a_prior_needs_is_fetched(self, server, folder):
        upload(folder, "me/tiny")
        server.repositories["me/tiny"]["training/state.pt"] = bytes(1000)
        server.repositories["me/tiny"]["unet/diffusion_pytorch_model.bin"] = bytes(1000)
        fetched = hub.fetch("me/tiny")
        names = {str(path.relative_to(fetched)) for path in fetched.rglob("*") if path.is_file()}
        assert "unet/diffusion_pytorch_model.safetensors" in names
        assert not names & {"training/state.pt", "unet/diffusion_pytorch_model.bin", "curve.png"}

    def test_a_fetched_prior_is_there_without_a_network(self, server, folder):
        upload(folder, "me/tiny")
        first = load_prior("me/tiny", device="cpu")
        server.shutdown()
        server.server_close()
        assert load_prior("me/tiny", device="cpu").identity["sha256"] == first.identity["sha256"]

    def test_from_a_process_of_its_own(self, server, folder, tmp_path):
        """HF_ENDPOINT, HF_TOKEN and HF_HOME as a user sets them."""
        upload(folder, "me/tiny")
        environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-m", "invdiff", "prior", "info", "me/tiny"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0 and "me/tiny" in result.stdout, result.stderr


class TestWhatCanGoWrong:
    def fails(self, code, says, *arguments):
        result = invoke(*arguments)
        assert result.exit_code == code, result.output
        assert says in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr

    def test_a_repository_that_does_not_exist(self, server):
        said = self.fails(1, "me/nothing: no such folder here", "prior", "info", "me/nothing")
        assert "HTTP 401: Repository" in said and "check the name; if it is private or gated, log in" in said

    def test_a_private_one_without_a_token(self, server, folder, monkeypatch):
        upload(folder, "me/secret", private=True)
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(CheckpointError, match="if it is private or gated, log in"):
            load_prior("me/secret")

    def test_one_that_holds_no_prior(self, server):
        server.repositories["me/text"], server.private["me/text"] = {"README.md": b"hello"}, False
        said = self.fails(1, "not a complete diffusers checkpoint, missing", "prior", "info", "me/text")
        assert "model_index.json" in said

    def test_no_network(self, server, folder, tmp_path):
        address = server.address
        server.shutdown()
        server.server_close()
        said = self.fails(1, "it cannot be fetched from the Hugging Face hub", "prior", "info", "me/tiny")
        assert "check the name and the network" in said
        assert address not in said.split("(")[0]

    def test_offline_by_choice(self, server, folder, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        self.fails(1, "HF_HUB_OFFLINE is not set", "prior", "info", "me/tiny")
        assert not server.asked
