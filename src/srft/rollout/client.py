"""One running vLLM server: is it well, which weights does it hold, take these, answer this."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import Any

import httpx2

from srft.errors import RolloutError
from srft.rollout.rollout_config import ServerConfig

_GENERATE = "/inference/v1/generate"
_HOW = "start servers with `srft serve` and the recipe of the run (docs/rollouts.md)"


@functools.cache
def connection_settings() -> dict[str, Any]:
    """Servers stand beside us: no proxy that the environment names lies between. Certificates are
    read once, which takes longer than most calls."""
    return {"trust_env": False, "verify": httpx2.create_ssl_context()}


class ServerFailure(Exception):
    """A server did not do what was asked. Never a user's concern while another server is up. ``status``:
    of its HTTP answer, where it gave one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """One completion as vLLM gives it."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    stop_reason: int | str | None


class Server:
    """Speaks to one server. ``up`` is what the fleet knows of it; ``version`` names the weights it
    was last seen to hold. Control calls block; ``ask`` is asynchronous."""

    def __init__(self, url: str, config: ServerConfig) -> None:
        self.url, self.config = url, config
        self.http = httpx2.Client(**connection_settings())
        self.up = False
        self.reason = "not reached yet"

    def call(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        """One control call; the JSON of its answer, or None where it is none.

        Raises:
            ServerFailure: no answer in time, or one that is not a success.
        """
        timeout = timeout or self.config.connect_timeout_s
        try:
            response = self.http.request(method, self.url + path, json=body, timeout=timeout)
        except httpx2.TransportError as error:
            raise ServerFailure(f"{path}: {type(error).__name__} {error}") from error
        if (status := response.status_code) != 200:
            raise ServerFailure(f"{path}: status {status}: {response.text[:300]}", status)
        kind = response.headers.get("content-type", "")
        return response.json() if response.content and "json" in kind else None

    def close(self) -> None:
        """Closes the connections; the server keeps running."""
        self.http.close()

    def weight_version(self) -> str:
        """The name of the weights it holds, which also shows that it is well.

        Raises:
            ServerFailure: it does not answer.
            RolloutError: it is a vLLM server, but was not started so as to take weights.
        """
        self.call("GET", "/health")
        try:
            return str(self.call("GET", "/weight_info")["weight_version"])
        except ServerFailure as error:
            if error.status != 404:
                raise
            raise RolloutError(
                f"{self.url}: this server has no calls for receiving weights; {_HOW}"
            ) from error

    def world_size(self) -> int:
        """How many workers take part in a transfer of weights."""
        return int(self.call("GET", "/get_world_size")["world_size"])

    def adapter_rank(self) -> int:
        """The largest rank of adapters that it applies itself; 0: none, or it does not say."""
        try:
            # vLLM describes the whole machine with it, which takes seconds the first time.
            path = "/server_info?config_format=json"
            info = self.call("GET", path, timeout=self.config.update_timeout_s) or {}
        except ServerFailure:
            return 0
        lora = info.get("vllm_config", {}).get("lora_config") or {}
        return int(lora.get("max_lora_rank", 0))

    async def ask(self, http: httpx2.AsyncClient, body: Any, version: str) -> Answer:
        """One completion by the weights called ``version``.

        Raises:
            ServerFailure: no answer in time, none at all, a broken one, or one by other weights.
            RolloutError: the server refuses the request itself; another one would do so too.
        """
        try:
            async with asyncio.timeout(self.config.timeout_s):
                response = await http.post(self.url + _GENERATE, json=body)
        except TimeoutError as error:
            raise ServerFailure(f"no completion within {self.config.timeout_s:g} s") from error
        except httpx2.TransportError as error:
            raise ServerFailure(f"{type(error).__name__} {error}") from error
        if response.status_code == 404 and "model" in body and "does not exist" in response.text:
            raise ServerFailure("it does not have the present adapters")
        if response.status_code in (403, 404):
            raise RolloutError(
                f"{self.url}: this server does not take tokens ({response.text[:200]}); {_HOW}"
            )
        if 400 <= response.status_code < 500:
            raise RolloutError(f"{self.url} refuses a request: {response.text[:500]}")
        if response.status_code != 200:
            raise ServerFailure(f"status {response.status_code}: {response.text[:300]}")
        try:
            choice = response.json()["choices"][0]
        except (ValueError, LookupError, TypeError) as error:
            raise ServerFailure(f"an answer that cannot be read ({error!r})") from error
        return _answer(choice, version, self.url)


def _answer(choice: dict[str, Any], version: str, url: str) -> Answer:
    try:
        if choice["finish_reason"] not in ("stop", "length"):
            raise ServerFailure(f"ended by {choice['finish_reason']!r}")
        versions = {str(span["version"]) for span in choice["weight_versions"]}
        tokens, content = choice["token_ids"], choice["logprobs"]["content"]
        answer = Answer(
            tokens,
            [float(entry["logprob"]) for entry in content],
            choice["finish_reason"],
            choice["stop_reason"],
        )
        sampled = [entry["token_id"] for entry in content]
    except (LookupError, TypeError) as error:
        raise RolloutError(
            f"{url}: its answers have an unexpected form ({error!r}); use the version of vLLM "
            "that docs/rollouts.md names"
        ) from error
    if versions != {version}:
        raise ServerFailure(f"answered with the weights {sorted(versions)}, not {version!r}")
    if sampled != tokens:
        raise ServerFailure("log-probabilities of other tokens than were sampled")
    return answer
