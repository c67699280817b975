"""A stand-in for a vLLM server: the same calls, answered by the embedded engine over weights of its
own that arrive the same way. It can be told to die, to hang and to forget."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from srft.model.adapters import merge_adapter
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams


class FakeServer:
    """Starts with the weights of ``model`` as they are now.

    fail(n): the next ``n`` completions break their connection. hang: seconds before each answer.
    refuse: answer 400. asked counts (prompt, seed) of the completions that were answered. As vLLM it
    keeps what it computed for a prompt until it is told to forget; stale counts answers from what the
    weights of before an update left. rank: of the adapters that it applies itself, 0 for none; received
    counts the bytes of the files it was told to read.
    """

    def __init__(self, model: Any, tokenizer: Any, port: int = 0, rank: int = 0) -> None:
        self.rank, self.received = rank, Counter[str]()
        self.base = copy.deepcopy(model)
        self.tokenizer = tokenizer
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lock = threading.Lock()
        self.hang, self.failures, self.refuse, self.deaf = 0.0, 0, False, False
        self.broken = False
        self.dies_after: int | None = None
        self.asked: Counter[tuple[tuple[int, ...], int]] = Counter()
        self.updates, self.stale = 0, 0
        self.stopped = threading.Event()
        self.start()

    def start(self) -> None:
        """A fresh process, so to speak: the weights it was made with, and no name for them."""
        self.model = copy.deepcopy(self.base)
        self.engine = EmbeddedEngine(self.model, self.tokenizer, RolloutConfig(check=False))
        self.version, self.updating = "default", False
        self.whole, self.adapters = self.base, dict[str, str]()
        self.prefixes: dict[tuple[int, ...], int] = {}
        self.http = _Server(("127.0.0.1", self.port), _handler(self))
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """As kill -9: open connections break, new ones are refused."""
        self.http.dead = True
        self.http.shutdown()
        self.http.server_close()
        for connection in list(self.http.open):
            connection.close()
        self.stopped.set()

    def restart(self) -> None:
        self.stop()
        self.start()

    def receive(self, path: str) -> None:
        if not self.deaf:
            state = load_file(path)
            self.model.load_state_dict(state)
        self.whole = copy.deepcopy(self.model)
        self.updates += 1
        self.received["whole"] += Path(path).stat().st_size

    def adapt(self, name: str, path: str) -> None:
        self.adapters = {name: path}  # it keeps one, as vLLM does with max_loras=1
        model = copy.deepcopy(self.whole)
        merge_adapter(model, Path(path))
        self.model.load_state_dict(model.state_dict())
        self.updates += 1
        self.received["adapter"] += sum(file.stat().st_size for file in Path(path).iterdir())

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        fields = body["sampling_params"]
        params = SamplingParams(
            temperature=fields["temperature"],
            top_p=fields["top_p"],
            top_k=fields["top_k"],
            max_tokens=fields["max_tokens"],
            stop=tuple(fields["stop"]),
            stop_token_ids=tuple(fields["stop_token_ids"]),
        )
        request = RolloutRequest(tuple(body["token_ids"]), 1, fields["seed"])
        version = self.version
        with self.lock:
            self.stale += self.prefixes.setdefault(request.prompt_ids, self.updates) != self.updates
            ((found,),) = self.engine.generate([request], params)
        self.asked[(request.prompt_ids, request.seed)] += 1
        ended_by_string = any(
            text in self.tokenizer.decode(found.token_ids) for text in params.stop
        )
        choice = {
            "finish_reason": found.finish_reason,
            "stop_reason": params.stop[0] if ended_by_string else found.token_ids[-1],
            "token_ids": list(found.token_ids),
            "weight_versions": [{"version": version, "start": 0, "end": len(found.token_ids)}],
            "logprobs": {
                "content": [
                    {"token_id": token, "logprob": value}
                    for token, value in zip(found.token_ids, found.logprobs, strict=True)
                ]
            },
        }
        return {"choices": [choice]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        self.open: set[socket.socket] = set()
        self.dead = False
        super().__init__(*args)

    def handle_error(self, *args: Any) -> None:
        """Connections break here on purpose."""


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.server.open.add(self.connection)

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, status: int, body: Any = None) -> None:
            if self.server.dead:
                self.drop()
                return
            plain = isinstance(body, str)  # vLLM answers some calls in words
            data = body.encode() if plain else json.dumps(body if body is not None else {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if plain else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def drop(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def do_GET(self) -> None:
            lora = {"max_lora_rank": fake.rank} if fake.rank else None
            answers = {
                "/weight_info": {"weight_version": fake.version},
                "/server_info?config_format=json": {"vllm_config": {"lora_config": lora}},
            }
            self.answer(200, answers.get(self.path))

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or b"{}")
            if self.path == "/inference/v1/generate":
                self.generate(body)
            elif self.path == "/start_weight_update":
                # vLLM gives no reason: a trainer cannot tell an open update from anything else.
                broken = fake.broken and not fake.updating
                self.answer(500 if broken or fake.updating else 200, {"error": "in the worker"})
                fake.updating = not broken
            elif self.path == "/update_weights" and not fake.updating:
                self.answer(500, {"error": "no update was started"})
            elif self.path == "/update_weights":
                fake.receive(body["update_info"]["path"])
                self.answer(200)
            elif self.path == "/finish_weight_update":
                fake.version, fake.updating = body["weight_version"], False
                self.answer(200)
            elif self.path == "/v1/load_lora_adapter" and fake.rank:
                fake.adapt(body["lora_name"], body["lora_path"])
                self.answer(200, "Success: the adapters were added.")
            elif self.path == "/v1/unload_lora_adapter" and body["lora_name"] not in fake.adapters:
                self.answer(404, {"error": "no such adapter"})
            elif self.path == "/update_weight_version":
                fake.version = body["new_version"]
                self.answer(200)
            else:
                if self.path == "/reset_prefix_cache":
                    fake.prefixes.clear()
                self.answer(200)

        def generate(self, body: Any) -> None:
            if fake.refuse:
                self.answer(400, {"error": "the prompt is too long"})
                return
            if body.get("model", "") not in {"", *fake.adapters}:
                self.answer(404, {"error": f"The model `{body['model']}` does not exist."})
                return
            time.sleep(fake.hang)
            with fake.lock:
                failing = fake.failures > 0
                fake.failures -= failing
            if failing:
                self.drop()
                return
            found = fake.complete(body)
            if fake.dies_after is not None:
                fake.dies_after -= 1
                if fake.dies_after < 0:
                    fake.dies_after = None
                    threading.Thread(target=fake.stop).start()
            self.answer(200, found)

    return Handler


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def perturb(model: Any, scale: float = 0.05) -> None:
    """An update, as far as an engine is concerned."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
