"""Several turns over an engine whose turns are written down, and the mask worked out by hand."""

import itertools

import pytest
import torch
from tests.environments.conftest import add

from srft.data.data_config import DataConfig
from srft.data.packing import pack
from srft.data.template import Template
from srft.environments.toolbox import Toolbox
from srft.environments.tools import Tools
from srft.evaluation.evaluate import evaluate
from srft.objective.loss import compute_loss, counts
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.objective.table import sequence_table, token_index
from srft.rewards.scorer import Scorer
from srft.trainer.collect import _sequence
from srft.types import Completion, Example, RolloutRequest, SamplingParams, TokenBatch

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
END = "<|im_end|>"


class Scripted:
    """An engine that says what is written for it, and notes what it is asked."""

    def __init__(self, tokenizer, *turns):
        self.tokenizer, self.turns = tokenizer, list(turns)
        self.asked = []

    def generate(self, requests, params, on_completion=None):
        self.asked.append(list(requests))
        found = []
        for r, request in enumerate(requests):
            found.append([])
            for i in range(request.n):
                said = self.turns.pop(0)
                ids = self.tokenizer(said).input_ids[: request.most_tokens(params)]
                whole = ids[-1] == self.tokenizer.convert_tokens_to_ids(END)
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                logprobs = [-0.5 - 0.01 * k for k in range(len(ids))]
                reason = "stop" if whole else "length"
                completion = Completion(tuple(ids), tuple(logprobs), text, reason)
                found[-1].append(completion)
                on_completion(r, i, completion)
        return found

    def update_weights(self): ...
    def close(self): ...


@pytest.fixture
def over(tokenizer):
    """``over(engine, ...)``: a ToolEngine with ``add``, and the tokenized question."""

    def build(engine, factories=None, max_turns=None):
        toolbox = Toolbox([add], factories or {}, max_turns=max_turns)
        tools = Tools(toolbox, Template(tokenizer, DataConfig()))
        (item,), _ = tools.tokenize([Example("3 + 4?", answer="7")], tokenizer, DataConfig())
        return tools.over(engine, (tokenizer.convert_tokens_to_ids(END),)), item

    return build


def asked(item, n=1, seed=5, **settings):
    return [RolloutRequest(item.prompt_ids, n, seed, example=item.example, **settings)]


def test_turns_frames_and_mask(over, tokenizer):
    engine, item = over(Scripted(tokenizer, CALL + END, f"It is 7.{END}"))
    ((completion,),) = engine.generate(asked(item), SamplingParams(max_tokens=200))
    frame = "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n"
    parts = [tokenizer(text).input_ids for text in (CALL + END, frame, f"It is 7.{END}")]
    assert list(completion.token_ids) == [*itertools.chain(*parts)]
    first, middle, last = map(len, parts)
    assert completion.loss_mask == (True,) * first + (False,) * middle + (True,) * last
    assert completion.logprobs == (
        *(-0.5 - 0.01 * k for k in range(first)),
        *(0.0,) * middle,
        *(-0.5 - 0.01 * k for k in range(last)),
    )
    assert str(completion.text) == "It is 7." and completion.finish_reason == "stop"
    roles = [message["role"] for message in completion.text.messages]
    assert roles == ["assistant", "tool", "assistant"]
    assert completion.text.messages[1] == {"role": "tool", "name": "add", "content": "7"}
    assert (completion.episode.calls, completion.episode.failures) == (1, 0)
    # The whole is what the template makes of the whole conversation.
    messages = [*item.example.prompt, *completion.text.messages]
    whole = tokenizer.apply_chat_template(messages, tools=[*item.example.tools], return_dict=False)
    ours = [*item.prompt_ids, *completion.token_ids]
    assert whole[: len(ours)] == ours and tokenizer.decode(whole[len(ours) :]) == "\n"


def test_the_second_turn_is_asked_behind_the_first(over, tokenizer):
    script = Scripted(tokenizer, CALL + END, f"7{END}", CALL + END, f"7{END}", f"7{END}")
    engine, item = over(script)
    (found,) = engine.generate(asked(item, n=3, seed=5), SamplingParams(max_tokens=200))
    first, second = script.asked
    assert [(r.prompt_ids, r.n, r.seed) for r in first] == [(item.prompt_ids, 3, 5)]
    assert [r.n for r in second] == [1, 1]
    assert len({5, 6, 7, *(r.seed for r in second)}) == 5  # no turn draws another's numbers again
    for request, completion in zip(second, (found[0], found[2]), strict=True):
        given = len(request.prompt_ids) - len(item.prompt_ids)
        assert request.prompt_ids == item.prompt_ids + completion.token_ids[:given]
        assert request.max_tokens == 200 - given
    # A completion's seeds are its own, whatever is beside it.
    alone = Scripted(tokenizer, CALL + END, f"7{END}")
    engine, item = over(alone)
    engine.generate(asked(item, n=1, seed=7), SamplingParams(max_tokens=200))
    assert alone.asked[1][0].seed == second[1].seed


def test_a_response_without_calls_is_as_without_tools(over, tokenizer):
    engine, item = over(Scripted(tokenizer, f"It is 7.{END}"))
    ((completion,),) = engine.generate(asked(item), SamplingParams(max_tokens=200))
    assert completion.loss_mask is None and len(completion.text.messages) == 1
    assert completion.text == "It is 7."


def test_budget_of_turns(over, tokenizer):
    engine, item = over(Scripted(tokenizer, *[CALL + END] * 3), max_turns=3)
    ((completion,),) = engine.generate(asked(item), SamplingParams(max_tokens=1000))
    assert completion.episode.calls == 2 and completion.finish_reason == "stop"
    assert [m["role"] for m in completion.text.messages] == ["assistant", "tool"] * 2 + [
        "assistant"
    ]


@pytest.mark.parametrize("room", range(-1, 3))
def test_budget_of_tokens(over, tokenizer, room):
    """A result is added if a token fits behind it."""
    call, frame = (
        len(tokenizer(text).input_ids)
        for text in (CALL + END, "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n")
    )
    engine, item = over(Scripted(tokenizer, CALL + END, f"7{END}"))
    limit = call + frame + room
    ((completion,),) = engine.generate(asked(item), SamplingParams(max_tokens=limit))
    assert len(completion.token_ids) == (limit if room > 0 else call) <= limit
    assert completion.finish_reason == ("stop" if room == 2 else "length")
    assert len(completion.token_ids) == len(completion.logprobs)
    cut = Scripted(tokenizer, CALL + END)
    engine, item = over(cut)
    request = asked(item, max_tokens=call - 1)
    ((completion,),) = engine.generate(request, SamplingParams(max_tokens=200))
    assert completion.finish_reason == "length" and completion.episode.calls == 0


def test_a_turn_that_a_string_ended_gets_its_end_token(over, tokenizer):
    class Stops(Scripted):
        def generate(self, requests, params, on_completion=None):
            def stopped(r, i, c):
                kept = c.token_ids[:-1], c.logprobs[:-1]
                on_completion(r, i, Completion(*kept, c.text, "stop"))

            return super().generate(requests, params, stopped)

    engine, item = over(Stops(tokenizer, CALL + END, f"7{END}"))
    ((completion,),) = engine.generate(asked(item), SamplingParams(max_tokens=200))
    said = len(tokenizer(CALL).input_ids)
    assert completion.token_ids[said] == tokenizer.convert_tokens_to_ids(END)
    assert completion.loss_mask[said - 1 : said + 1] == (True, False)


class Board:
    """Shows another number after each reset."""

    made = resets = 0

    def __init__(self):
        Board.made += 1

    def reset(self, **row):
        Board.resets += 1
        self.number = Board.resets
        return f" The board shows {self.number % 2}."

    def get_reward(self):
        return float(self.number)


def test_each_rollout_sees_what_its_environment_shows(over, tokenizer):
    script = Scripted(tokenizer, *[f"7{END}"] * 4)
    engine, item = over(script, {None: Board})
    Board.resets = 1
    (found,) = engine.generate(asked(item, n=4), SamplingParams(max_tokens=200))
    shown = [completion.episode.prompt[-1]["content"] for completion in found]
    assert shown == [f"3 + 4? The board shows {n}." for n in (0, 1, 0, 1)]
    for completion, text in zip(found, shown, strict=True):
        assert f"{text}<|im_end|>" in tokenizer.decode(completion.episode.prompt_ids)
    assert [(r.n, r.seed) for r in script.asked[0]] == [(1, 5 + k) for k in range(4)]


def test_environments_are_used_again_once_rewards_are_known(over, tokenizer):
    Board.made = 0
    engine, item = over(Scripted(tokenizer, *[f"7{END}"] * 6), {None: Board})
    for _ in range(3):
        (found,) = engine.generate(asked(item, n=2), SamplingParams(max_tokens=200))
        used = {id(completion.episode.environment) for completion in found}
        assert len(used) == 2
    assert Board.made == 2


def test_evaluation_reads_the_last_turn_and_shows_all(over, tokenizer):
    engine, item = over(Scripted(tokenizer, CALL + END, f"It is 7.{END}"), {None: Board})
    with Scorer(["math", *engine.toolbox.rewards()]) as scorer:
        result = evaluate(engine, tokenizer, [item], scorer, SamplingParams(max_tokens=200))
    (sample,) = result.problems[0].samples
    assert sample.text == "[call] add({'a': 3, 'b': 4})\n[add] 7\nIt is 7."
    assert sample.correct and sample.parts["math"] == 1.0 and sample.parts["Board"] > 0
    assert sample.tokens == len(
        tokenizer(CALL + END).input_ids + tokenizer(f"It is 7.{END}").input_ids
    )


def test_loss_and_gradient_worked_out_by_hand(over, tokenizer):
    """grpo on a rollout of two turns: A times the mean over the tokens that were sampled, and no gradient
    at any other."""
    engine, item = over(Scripted(tokenizer, CALL + END, f"It is 7.{END}"))
    ((completion,),) = engine.generate(asked(item), SamplingParams(max_tokens=200))
    sequence = _sequence(item, 0, (), completion)
    method = get_method("grpo")
    table = sequence_table([sequence])
    table.advantage_S[:] = 1.5
    (packed,) = pack([sequence], table, 10_000)
    index = packed.index
    assert index.loss_mask_T.tolist() == list(completion.loss_mask)
    torch.manual_seed(0)
    logits = torch.randn(
        len(completion.token_ids), len(tokenizer), dtype=torch.float64, requires_grad=True
    )
    logp_TV = logits.log_softmax(-1)
    logprob_T = logp_TV[torch.arange(len(logits)), packed.target_T]
    entropy_T = -(logp_TV.exp() * logp_TV).sum(-1)
    batch = TokenBatch(
        index, logprob_T, entropy_T.detach(), entropy_T, logprob_T.detach(), entropy_T.detach(),
        sampler_logprob_T=packed.sampler_logprob_T,
    )  # fmt: skip
    found = counts(method, token_index(table, index.loss_mask_T))
    loss, metrics = compute_loss(method, batch, found, Progress(0, 1))
    (gradient,) = torch.autograd.grad(loss, logits)
    own = torch.tensor(completion.loss_mask)
    # d(-A * ratio / n) / d logits = -A / n * (onehot - p), with ratio 1.
    onehot = torch.nn.functional.one_hot(packed.target_T, len(tokenizer))
    expected = -1.5 / own.sum() * (onehot - logp_TV.detach().exp())
    expected[~own] = 0
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(loss.item(), -1.5)
    mean = float(entropy_T[own].mean().detach())
    assert metrics["entropy/rollouts/sum"] / metrics["entropy/rollouts/count"] == pytest.approx(
        mean
    )
    gap = (logprob_T.detach() - packed.sampler_logprob_T)[own].abs().mean()
    assert metrics["mismatch/abs/sum"] / metrics["mismatch/abs/count"] == pytest.approx(float(gap))
