"""The few types that travel through the whole program, in the order in which the data flows.

Shape suffixes of tensors: T response tokens of a batch, S sequences, N all tokens (prompt and
response) of a packed batch, V vocabulary, D hidden width. Log-probabilities and entropies are in
nats and float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

Message = Mapping[str, Any]
"""One chat message: ``{"role": "user" | "assistant" | "system", "content": text}``, and what else
chat templates read of one (``tool_calls``, ``reasoning_content``)."""


class Spoken(str):
    """A demonstration or a rollout that is more than a text: ``messages`` are all of it, thinking, tool
    calls and what tools answered among them. The text is that of the last of them, which verifiers read."""

    messages: tuple[Message, ...]

    def __new__(cls, text: str, messages: Sequence[Message]) -> Spoken:
        spoken = super().__new__(cls, text)
        spoken.messages = tuple(messages)
        return spoken

    def __reduce__(self) -> tuple[type[Spoken], tuple[str, tuple[Message, ...]]]:
        return Spoken, (str(self), self.messages)


def transcript(text: str) -> str:
    """A response as people read it: of several turns, each with its calls of tools or its tool's name."""
    turns = getattr(text, "messages", ())
    if len(turns) < 2:
        return str(text)
    lines = []
    for turn in turns:
        if turn["role"] == "tool":
            lines.append(f"[{turn.get('name', 'tool')}] {turn['content']}")
            continue
        lines += [turn["content"]] if turn["content"] else []
        for call in turn.get("tool_calls") or ():
            function = call.get("function", call)
            lines.append(f"[call] {function['name']}({function.get('arguments')})")
    return "\n".join(lines)


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Example:
    """One row of a dataset in the one schema every format is read into.

    ``demonstrations`` holds the text of zero, one or several expert responses (what the assistant
    says, without the prompt). ``columns`` holds every other column of the row, as reward functions
    receive them. ``source`` is ``file:row`` for error messages. ``other_answers`` are as right as
    ``answer``. ``prompt_end`` is how the prompt ends for the model (an open ``<think>``, say), known
    once it is tokenized. ``tools`` are the functions that the prompt offers, as JSON schemas.
    """

    prompt: str | tuple[Message, ...]
    demonstrations: tuple[str, ...] = ()
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    source: str = "<memory>"
    other_answers: tuple[str, ...] = ()
    prompt_end: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def asked(self) -> str:
        """The user's last words, without what the chat template sets around them."""
        if isinstance(self.prompt, str):
            return self.prompt
        said = [m["content"] for m in self.prompt if m["role"] == "user"]
        content = said[-1] if said else self.prompt[-1]["content"]
        if isinstance(content, str):
            return content
        return "\n".join(str(part.get("text", "")) for part in content or ())


@dataclass(frozen=True)
class TokenizedExample:
    """An example in tokens: ``prompt_ids + demonstration_ids[k]`` is what the model is trained on.

    A demonstration ends with the end-of-sequence token, unless it was truncated, and
    ``example.demonstrations[k]`` is its whole text (of the tokens, a run keeps those alone that pass its
    verifier). ``index`` is the row in the dataset. ``demonstration_masks[k]`` is False at the tokens of
    demonstration k that a tool wrote, None where there are none.
    """

    example: Example
    index: int
    prompt_ids: tuple[int, ...]
    demonstration_ids: tuple[tuple[int, ...], ...]
    demonstration_masks: tuple[tuple[bool, ...] | None, ...] = ()


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. ``top_k`` 0 and ``top_p`` 1.0 mean off; ``temperature`` 0 means greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class RolloutRequest:
    """``n`` completions of one prompt. Completion ``i`` depends on ``seed + i`` alone, not on what
    else is in the batch (up to the rounding of batched matrix products). ``max_tokens``, where it is
    set, holds in place of a larger one in the sampling parameters. ``example``: the row that the prompt
    is from, which environments are reset to."""

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    max_tokens: int | None = None
    example: Example | None = field(default=None, repr=False, compare=False)

    def most_tokens(self, params: SamplingParams) -> int:
        """The longest completion it may get."""
        return min(params.max_tokens, self.max_tokens or params.max_tokens)


@dataclass(frozen=True)
class Episode:
    """Where a completion of several turns with tools came from. ``prompt`` and its ``prompt_ids``: what
    was asked, with what the environment added to it. ``environment``: the object that was acted in,
    until rewards are known. ``calls`` of tools were made; ``failures`` of them gave an error."""

    prompt: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    environment: Any = None
    calls: int = 0
    failures: int = 0


@dataclass(frozen=True)
class Completion:
    """What was sampled: token ids (the stop token included), and the log-probability of each under
    the distribution it was drawn from (temperature and truncation applied). ``text`` is decoded
    without special tokens and cut before a stop string. ``finish_reason`` is "length" when
    ``max_tokens`` was reached.

    Of several turns with tools, ``text`` is ``Spoken``, ``loss_mask`` is False (and the log-probability
    0) at the tokens that were not sampled, and ``episode`` says the rest."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    loss_mask: tuple[bool, ...] | None = None
    episode: Episode | None = None


class RolloutEngine(Protocol):
    """Whatever generates. One instance serves a whole run."""

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_completion: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """``result[r][i]`` is completion ``i`` of request ``r``. ``on_completion(r, i, c)`` is called
        as each one finishes, so that scoring can run while generation goes on."""
        ...

    def update_weights(self) -> None:
        """Make the engine sample from the trainer's present weights."""
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...


@dataclass(frozen=True)
class TrainingSequence:
    """One prompt with one response, a rollout or a demonstration, as the objective sees it.

    ``group`` numbers the prompts of a step. ``correct`` is reward > threshold (0.5 unless set).
    ``prefix_length`` response tokens at the start were given from a demonstration, not sampled.
    ``sampler_logprobs`` are the engine's own (one per response token), None for demonstrations.
    ``loss_mask`` is False at response tokens that no loss and no entropy may cover (what a tool
    wrote); None: every token counts. ``context_ids`` is the prompt under which a teacher scores the
    response; None: no teacher scores it.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    group: int
    is_demo: bool
    reward: float
    correct: bool
    truncated: bool = False
    prefix_length: int = 0
    sampler_logprobs: tuple[float, ...] | None = None
    loss_mask: tuple[bool, ...] | None = None
    context_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SequenceTable:
    """What is known about S sequences before any forward pass, as flat tensors.

    group_S (int64), is_demo_S (bool), reward_S (float32), correct_S (bool), truncated_S (bool),
    length_S (int64, response tokens), prefix_S (int64), taught_S (bool: a teacher scores it),
    advantage_S (float32; zeros until the method's estimator has filled it in).
    """

    group_S: Tensor
    is_demo_S: Tensor
    reward_S: Tensor
    correct_S: Tensor
    truncated_S: Tensor
    length_S: Tensor
    prefix_S: Tensor
    taught_S: Tensor
    advantage_S: Tensor


@dataclass(frozen=True)
class TokenIndex:
    """Which response token is where: known before the forward pass, so terms can be counted.

    sequence_T (int64) indexes the rows of ``sequences``; position_T (int64) counts from 0 at the
    first response token; loss_mask_T (bool) is False at tokens that no term covers.
    """

    sequences: SequenceTable
    sequence_T: Tensor
    position_T: Tensor
    loss_mask_T: Tensor


@dataclass(frozen=True)
class TokenBatch:
    """The objective's whole input: flat tensors over the T response tokens of one micro-batch.

    logprob_T carries gradient. entropy_T never does. entropy_grad_T is the same entropy with
    gradient, for entropy bonuses only. old_logprob_T is detached: the policy that the rollouts are
    taken to come from (equal to logprob_T when one optimizer step follows each rollout batch).
    old_entropy_T: entropy under that policy. reference_logprob_T is None unless the method asks
    for a frozen reference. batch_entropy: mean entropy (demonstrations, rollouts) over the whole
    optimizer batch, and prefix_threshold: the entropy from which on a given prefix's tokens are
    trained on; None where no such pass was made.

    teacher_logprob_T, teacher_entropy_T: the same responses under the teacher, in its own context
    (no gradient); where no teacher scores a sequence, the policy's own. divergence_T: from teacher
    to policy over the whole vocabulary, with gradient. None unless the method asks for a teacher.
    advantage_T: the advantage of each token; None: that of its sequence. balance: what the
    micro-batch adds to the loss for the balance of the model's experts, a scalar with gradient.
    """

    index: TokenIndex
    logprob_T: Tensor
    entropy_T: Tensor
    entropy_grad_T: Tensor
    old_logprob_T: Tensor
    old_entropy_T: Tensor
    reference_logprob_T: Tensor | None = None
    sampler_logprob_T: Tensor | None = None
    batch_entropy: tuple[float, float] | None = None
    prefix_threshold: float | None = None
    teacher_logprob_T: Tensor | None = None
    teacher_entropy_T: Tensor | None = None
    divergence_T: Tensor | None = None
    advantage_T: Tensor | None = None
    balance: Tensor | None = None
