"""Teachers: who scores the responses of a step once more, and what they are shown for it.

A teacher is a frozen model of its own, the frozen reference, or the live policy that is shown more
than the prompt: a demonstration, or a right rollout of the same prompt. ``Method.teacher`` says which;
the objective sees log-probabilities and, where it asks for it, a divergence over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx2
import torch
from torch import Tensor

from srft.data.packing import PackedBatch
from srft.errors import RolloutError
from srft.model.divergence import Logits
from srft.model.policy import Policy
from srft.model.scoring import Against
from srft.objective.method import Method
from srft.rollout.client import connection_settings
from srft.types import TokenBatch


class Teacher(Protocol):
    """Scores responses without gradient."""

    def score(self, context: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """(logprob_T, entropy_T) of the response tokens of ``context``; no entropy where unknown."""
        ...

    def logits(self, context: PackedBatch) -> Logits | Tensor:
        """What its logits there are made of; states alone where the policy's own head is to be used."""
        ...


@dataclass(frozen=True)
class PolicyTeacher:
    """A policy as teacher: another model (``itself`` false), the live policy, or its reference."""

    policy: Policy
    itself: bool = False
    reference: bool = False

    @torch.no_grad()
    def score(self, context: PackedBatch) -> tuple[Tensor, Tensor | None]:
        with self._present() as policy:
            scores = policy.score(context)
        return scores.logprob_T, scores.entropy_T

    @torch.no_grad()
    def logits(self, context: PackedBatch) -> Logits | Tensor:
        with self._present() as policy:
            found = policy.logits(context, states_only=self.itself)
        return found.hidden_TD if self.itself else found

    @contextmanager
    def _present(self) -> Iterator[Policy]:
        if not self.reference:
            yield self.policy
            return
        assert self.policy.reference is not None, "the method must ask for a reference"
        with self.policy.reference() as frozen:
            yield replace(self.policy, model=frozen)  # type: ignore[arg-type]


class ServerTeacher:
    """A vLLM server as teacher: its completions call returns the log-probabilities of a prompt."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout_s
        self.http = httpx2.Client(**connection_settings())
        self._name: str | None = None

    def score(self, context: PackedBatch) -> tuple[Tensor, Tensor | None]:
        device = context.input_ids_N.device
        if not context.rows:
            return torch.zeros(0, device=device), None
        ids_P = context.input_ids_N
        if context.expand_P is not None:
            ids_P = ids_P[context.expand_P]
        lengths = context.cu_seqlens.diff().tolist()
        prompts = [part.tolist() for part in ids_P.split(lengths)]
        responses = context.index.sequences.length_S.tolist()
        choices = self._ask(prompts)
        found = [
            _prompt_logprobs(choice, ids, count, self.url)
            for choice, ids, count in zip(choices, prompts, responses, strict=True)
        ]
        flat = [value for values in found for value in values]
        return torch.tensor(flat, dtype=torch.float32, device=device), None

    def logits(self, context: PackedBatch) -> Logits | Tensor:
        raise AssertionError("a server is asked for the sampled form only")

    def close(self) -> None:
        self.http.close()

    def _ask(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        body = {"model": self._model(), "prompt": prompts, "max_tokens": 1, "prompt_logprobs": 0}
        answer = self._call("POST", "/v1/completions", body)
        return sorted(answer["choices"], key=lambda choice: int(choice["index"]))

    def _model(self) -> str:
        if self._name is None:
            self._name = str(self._call("GET", "/v1/models")["data"][0]["id"])
        return self._name

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            response = self.http.request(method, self.url + path, json=body, timeout=self.timeout)
        except httpx2.TransportError as error:
            raise RolloutError(
                f"teacher.server {self.url}: {type(error).__name__} {error}; is the server up?"
            ) from error
        if response.status_code != 200:
            raise RolloutError(
                f"teacher.server {self.url}{path}: status {response.status_code}: {response.text[:300]}"
            )
        return response.json()


def _prompt_logprobs(choice: Any, ids: Sequence[int], count: int, url: str) -> list[float]:
    """The log-probabilities of the last ``count`` of the tokens ``ids``."""
    try:
        entries = choice["prompt_logprobs"][-count:]
        return [
            float(entry[str(token)]["logprob"])
            for entry, token in zip(entries, ids[-count:], strict=True)
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise RolloutError(
            f"teacher.server {url}: its answer holds no log-probabilities of the prompt ({error!r}); it has "
            "to be a vLLM server whose completions call takes prompt_logprobs"
        ) from error


@dataclass(frozen=True)
class Lesson:
    """What the teacher says of one micro-batch: its scores at the tokens where ``taught_T`` is True, and
    what the policy is to be compared with there."""

    taught_T: Tensor
    logprob_T: Tensor
    entropy_T: Tensor | None
    against: Against | None

    def fill(self, batch: TokenBatch) -> TokenBatch:
        """The batch with the teacher's streams; where it says nothing, the policy's own."""
        places = self.taught_T.nonzero().flatten()

        def filled(own_T: Tensor, said_T: Tensor) -> Tensor:
            return own_T.detach().clone().index_put((places,), said_T)

        entropy_T = None if self.entropy_T is None else filled(batch.entropy_T, self.entropy_T)
        logprob_T = filled(batch.logprob_T, self.logprob_T)
        return replace(batch, teacher_logprob_T=logprob_T, teacher_entropy_T=entropy_T)


def ask(teacher: Teacher, method: Method, packed: PackedBatch, context: PackedBatch) -> Lesson:
    """Has the responses of ``packed`` scored after their contexts (``pack_contexts``)."""
    taught_T = packed.index.sequences.taught_S[packed.index.sequence_T]
    against = None
    if method.divergence:
        switches = method.switches
        against = Against(
            taught_T, teacher.logits(context), switches.distill_beta, switches.distill_top_k
        )
    return Lesson(taught_T, *teacher.score(context), against)


def tokens_of(contexts: Sequence[PackedBatch]) -> int:
    """Tokens that a teacher's passes work through."""
    return sum(context.num_tokens for context in contexts if context.rows)
