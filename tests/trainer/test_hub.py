"""push_to_hub against a stand-in of the hub's HTTP API on this machine."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from transformers import AutoModelForCausalLM

from srft import SRFTTrainer
from srft.errors import ConfigError


class Hub(BaseHTTPRequestHandler):
    """The calls of ``HfApi.create_repo`` and ``upload_folder``; ``server.files`` is what was committed."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.calls.append((self.path, self.headers["Authorization"]))
        if self.headers["Authorization"] != "Bearer right":
            return self._answer(401, {"error": "Invalid credentials"})
        url = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            name = "me/" + self.server.created["name"].split("/")[-1]
            return self._answer(
                200,
                {
                    "url": f"{url}/{name}",
                    "name": name,
                    "id": name,
                },
            )
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            regular = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._answer(200, {"files": regular})
        assert "/commit/" in self.path, self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            else:
                self.server.header = line["value"]
        return self._answer(
            200,
            {"commitUrl": f"{url}/me/run/commit/1", "commitOid": "1", "pullRequestUrl": None},
        )

    def do_GET(self):
        if self.headers["Authorization"] != "Bearer right":
            return self._answer(401, {"error": "Invalid credentials"})
        return self._answer(200, {"siblings": [], "id": "me/run", "sha": "0"})

    def _answer(self, code, value):
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_the_model_its_tokenizer_and_a_card_with_the_runs_figures_are_uploaded(
    hub, recipe, rows, tmp_path
):
    trainer = SRFTTrainer(
        args=recipe(method="sft", train={"steps": 1}), train_dataset=rows, eval_dataset=rows[:3]
    )
    trainer.train()
    address = trainer.push_to_hub(
        "Done", token="right", private=True, dataset_name="some/data", tags="maths"
    )
    assert address.endswith("/me/run/commit/1") and hub.header["summary"] == "Done"
    assert hub.created["name"] == "run" and hub.created["visibility"] == "private"
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight == trainer.model.lm_head.weight).all()
    assert {"tokenizer.json", "config.json"} <= hub.files.keys()
    card = hub.files["README.md"].decode()
    assert "datasets: [some/data]" in card and "tags: [srft, maths, " in card
    assert "sft (1 steps)" in card and "| 1 | eval | 3 |" in card


def test_what_the_hub_refuses_is_said(hub, recipe, rows):
    trainer = SRFTTrainer(args=recipe(method="sft", train={"steps": 1}), train_dataset=rows)
    with pytest.raises(
        ConfigError, match=r"(?s)push_to_hub: run was not uploaded: .*401.*hf auth login"
    ):
        trainer.push_to_hub(token="wrong")
    with pytest.raises(ConfigError, match="unknown setting 'privat'; did you mean 'private'"):
        trainer.push_to_hub(token="right", privat=True)
    assert not hub.files
    trainer.close()
