"""Teachers: what they are shown, what they say, and that it reaches the objective and the weights."""

import itertools
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from tests.toys import lab_model, save_lab_model

from srft.data.data_config import DataConfig
from srft.data.packing import pack, pack_contexts
from srft.data.template import tokenize_prompt
from srft.errors import ConfigError, ModelError, RolloutError
from srft.model.divergence import Logits, divergence
from srft.model.policy import Policy
from srft.objective.methods import get_method
from srft.objective.table import sequence_table
from srft.rewards.scorer import Score
from srft.runs.files import read_jsonl
from srft.trainer.api import SRFTTrainer
from srft.trainer.collect import Collected, Rollout
from srft.trainer.contexts import Contexts, with_text
from srft.trainer.teacher import PolicyTeacher, ServerTeacher, ask
from srft.trainer.teacher_config import TeacherConfig
from srft.trainer.update import forward
from srft.types import Example, TokenizedExample, TrainingSequence


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A model of the same family with other weights."""
    return save_lab_model(tmp_path_factory.mktemp("teacher"), initializer_range=0.2, seed=7)


def a_third(prompts, completions, **columns):
    return [float(len(text) % 3 == 0) for text in completions]


UNUSED = {"failed_demonstrations": "keep"}
PROMPTS = [(5, 6, 7), (5, 6, 7), (8, 9), (5, 6, 7), (3,)]
CONTEXTS = [(1, 2, 3, 4), (1, 2, 3, 4), None, (9, 9), (7, 5, 3)]
RESPONSES = [(10, 11), (12,), (13, 14, 15), (10, 12, 13), (11, 11)]


def told():
    return [
        TrainingSequence(p, r, group=0, is_demo=False, reward=1.0, correct=True, context_ids=c)
        for p, c, r in zip(PROMPTS, CONTEXTS, RESPONSES, strict=True)
    ]


def by_hand(model, prompt, response):
    """log-softmax of a plain forward pass at the response's tokens, [tokens, vocabulary]."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double()
    return torch.log_softmax(logits[len(prompt) - 1 : -1], -1)


@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize("itself", [True, False])
def test_a_teacher_says_what_a_plain_forward_pass_under_its_context_says(attention, itself):
    sequences = told()
    policy = Policy(lab_model(), SimpleNamespace())
    other = policy if itself else Policy(lab_model(seed=5), SimpleNamespace())
    shared = attention == "auto" and policy.shares_prompts
    (packed,) = pack(sequences, sequence_table(sequences), 1000, share_prompts=shared)
    switches = {"distill_form": "full", "distill_beta": 0.3}
    method = get_method("sdft" if itself else "opd", switches)
    teacher = PolicyTeacher(other, itself=itself)
    lesson = ask(teacher, method, packed, pack_contexts(sequences, packed, shared))
    batch = forward(policy, packed, lesson=lesson)
    index = batch.index
    for place, row in enumerate(packed.rows):
        mine = index.sequence_T == place
        own_TV = by_hand(policy.model, PROMPTS[row], RESPONSES[row])
        target_T = torch.tensor(RESPONSES[row])[:, None]
        if CONTEXTS[row] is None:
            assert not index.sequences.taught_S[place]
            torch.testing.assert_close(batch.teacher_logprob_T[mine], batch.logprob_T[mine])
            assert batch.divergence_T[mine].abs().max() == 0
            continue
        said_TV = by_hand(other.model, CONTEXTS[row], RESPONSES[row])
        expected = said_TV.gather(1, target_T)[:, 0].float()
        torch.testing.assert_close(batch.teacher_logprob_T[mine], expected, rtol=0, atol=2e-5)
        entropy = -(said_TV.exp() * said_TV).sum(-1).float()
        torch.testing.assert_close(batch.teacher_entropy_T[mine], entropy, rtol=0, atol=2e-5)
        unit = torch.eye(own_TV.shape[1], dtype=torch.float64)
        apart = divergence(Logits(own_TV, unit), Logits(said_TV, unit), 0.3).float()
        torch.testing.assert_close(batch.divergence_T[mine], apart, rtol=0, atol=2e-5)
    batch.divergence_T.sum().backward()
    assert policy.model.get_output_embeddings().weight.grad.abs().sum() > 0


def test_a_batch_in_which_nobody_is_taught_says_nothing():
    sequences = [replace(s, context_ids=None) for s in told()]
    policy = Policy(lab_model(), SimpleNamespace())
    (packed,) = pack(sequences, sequence_table(sequences), 1000)
    method = get_method("sdft", {"distill_form": "full"})
    context = pack_contexts(sequences, packed)
    assert context.rows == () and context.num_response_tokens == 0
    batch = forward(
        policy, packed, lesson=ask(PolicyTeacher(policy, True), method, packed, context)
    )
    torch.testing.assert_close(batch.teacher_logprob_T, batch.logprob_T.detach())


@pytest.mark.parametrize("name", ["opd", "gkd", "sdft", "sdpo", "rlsd", "asft"])
@pytest.mark.parametrize("form", ["sampled", "full"])
def test_methods_with_a_teacher_train_and_log_what_it_says(recipe, other_model, name, form):
    reads = get_method(name).switches.distill_form if name in ("opd", "sdft", "sdpo") else None
    if reads is None and form == "full":
        pytest.skip("has one form only")
    config = recipe(
        method=name,
        objective={"distill_form": form} if reads else {},
        train={"steps": 2, "gradient_analysis_every": 2},
        reward=UNUSED,
        teacher={"path": str(other_model)} if name in ("opd", "gkd") else {},
    )
    trainer = SRFTTrainer(args=config, reward_funcs=a_third)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    result = trainer.train()
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
    rows = read_jsonl(result.run_dir / "metrics.jsonl")
    assert all(row["train/teacher_tokens"] > 0 for row in rows)
    if name != "asft":  # no rollouts: nothing drawn from the policy
        assert all(row["teacher/kl"] > 0 and 0 < row["teacher/taught"] <= 1 for row in rows)


def test_on_policy_distillation_brings_the_policy_to_its_teacher(recipe, tmp_path):
    quick = {"run": {"checkpoint_every": 0, "samples_every": 0}, "reward": UNUSED}
    taught = recipe(method="sft", train={"steps": 12, "learning_rate": 0.01}, **quick)
    taught.run.dir = str(tmp_path / "teacher")
    SRFTTrainer(args=taught, reward_funcs=a_third).train()
    for form, share in (("sampled", 0.8), ("full", 0.5)):
        config = recipe(
            method="opd",
            objective={"distill_form": form},
            train={"steps": 12, "learning_rate": 0.01},
            rollout={"group_size": 8, "max_tokens": 8},
            teacher={"path": taught.run.dir},
            **quick,
        )
        config.run.dir = str(tmp_path / form)
        result = SRFTTrainer(args=config, reward_funcs=a_third).train()
        kl = [row["teacher/kl"] for row in read_jsonl(result.run_dir / "metrics.jsonl")]
        assert sum(kl[-3:]) < share * sum(kl[:3]), (form, kl)


def test_a_frozen_self_teacher_is_the_policy_of_before_training(recipe):
    said = {}
    for frozen in (True, False):
        config = recipe(
            method="sdft", train={"steps": 1}, reward=UNUSED, teacher={"frozen": frozen},
            run={"dir": f"unused-{frozen}"},
        )  # fmt: skip
        config.run.dir = config.model.path + f"-{frozen}"
        result = SRFTTrainer(args=config, reward_funcs=a_third).train()
        (row,) = read_jsonl(result.run_dir / "metrics.jsonl")
        said[frozen] = row["teacher/kl"]
    # Before the first update both are the same model.
    assert said[True] == pytest.approx(said[False], rel=1e-4)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"method": "opd"}, "set teacher.path"),
        ({"method": "opd", "teacher": {"path": "x", "server": "y"}}, "one of the two"),
        (
            {"method": "gkd", "teacher": {"server": "http://127.0.0.1:1"}},
            "compares whole distributions",
        ),
        (
            {
                "method": "opd",
                "teacher": {"server": "http://127.0.0.1:1"},
                "rollout": {"temperature": 0.7},
            },
            "scores at temperature 1",
        ),
    ],
)
def test_a_teacher_that_is_missing_or_cannot_do_it_is_refused(recipe, sections, words):
    with pytest.raises(ConfigError, match=words):
        SRFTTrainer(args=recipe(reward=UNUSED, **sections), reward_funcs=a_third)


def test_a_teacher_with_another_tokenizer_is_refused(recipe, tmp_path):
    folder = save_lab_model(tmp_path / "odd")
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    vocabulary = words["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(words))
    config = recipe(method="opd", reward=UNUSED, teacher={"path": str(folder)})
    with pytest.raises(ModelError, match="its tokenizer is not the policy's"):
        SRFTTrainer(args=config, reward_funcs=a_third)


# What self-teachers are shown.


def rollout(text, correct, length=2, **noted):
    sequence = TrainingSequence((1,), (2,) * length, 0, False, float(correct), correct)
    return Rollout(sequence, text, Score(float(correct), {}, correct, {}, noted))


class Words:
    """A tokenizer of characters, for contexts that can be read back."""

    chat_template = None

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return {(5,): "expert"}[tuple(ids)]


def contexts(monkeypatch, window=None):
    shown = []

    def tokenize(example, tokenizer, config):
        shown.append(example.prompt)
        return tuple(range(100, 100 + len(example.prompt)))

    monkeypatch.setattr("srft.trainer.contexts.tokenize_prompt", tokenize)
    settings = TeacherConfig(template="{prompt}|{solution}", feedback="{feedback}!{prompt}")
    return Contexts(Words(), DataConfig(), settings, window), shown


def collected(rollouts, demonstrations=("expert",)):
    example = Example("ask", ("failed", *demonstrations), "7", {}, "file:1")
    # Of the demonstrations those alone that pass the verifier are there as tokens.
    tokens = TokenizedExample(example, 0, (1,), ((5,),) * len(demonstrations))
    return Collected([0], [tokens], [rollouts], [[]])


def test_a_right_rollout_other_than_its_own_is_shown(monkeypatch):
    maker, shown = contexts(monkeypatch)
    group = collected([rollout("a", False), rollout("b", True), rollout("c", True)])
    maker.give(get_method("sdpo"), group)
    assert shown == ["ask|b", "ask|c"]  # a and c see b; b sees c
    given = [r.sequence.context_ids for r in group.rollouts[0]]
    assert all(ids is not None for ids in given)
    alone = collected([rollout("a", False), rollout("b", True)])
    maker.give(get_method("sdpo"), alone)
    assert [r.sequence.context_ids is None for r in alone.rollouts[0]] == [False, True]
    none = collected([rollout("a", False), rollout("b", False)])
    maker.give(get_method("sdpo"), none)
    assert all(r.sequence.context_ids is None for r in none.rollouts[0])


def test_what_a_reward_function_noted_of_a_wrong_rollout_is_shown_where_none_is_right(monkeypatch):
    maker, shown = contexts(monkeypatch)
    failed = [rollout("a", False, feedback="{prompt} 3 is used twice"), rollout("b", False)]
    group = collected([*failed, rollout("c", False, feedback=None)])
    maker.give(get_method("sdpo"), group)
    assert shown == ["{prompt} 3 is used twice!ask"]
    assert [r.sequence.context_ids is None for r in group.rollouts[0]] == [False, True, True]
    # A right rollout is the better lesson, and a right one is not told what was wrong with it.
    shown.clear()
    maker.give(get_method("sdpo"), collected([*failed, rollout("c", True, feedback="well done")]))
    assert shown == ["ask|c"]
    maker.settings = maker.settings.model_copy(update={"feedback": None})
    group = collected(failed)
    maker.give(get_method("sdpo"), group)
    assert all(r.sequence.context_ids is None for r in group.rollouts[0])


def test_feedback_of_a_reward_function_reaches_the_teacher_of_a_run(recipe):
    def never(prompts, completions, log_extra=None, **columns):
        log_extra("feedback", [f"{len(text)} characters are not enough" for text in completions])
        return [0.0] * len(completions)

    trainer = SRFTTrainer(args=recipe(method="sdpo", reward=UNUSED), reward_funcs=never)
    trainer.train()
    metrics = read_jsonl(trainer.run.metrics)
    assert all(row["teacher/taught"] == 1.0 for row in metrics)


@pytest.mark.parametrize(
    "template", ["no prompt {feedback}", "{prompt}", "{prompt}{feedback}{feedback}"]
)
def test_a_template_without_its_fields_is_refused(template):
    with pytest.raises(ValueError, match=r"must hold .* once"):
        TeacherConfig(feedback=template)


def test_the_demonstration_is_shown_where_there_is_one_and_it_fits(monkeypatch):
    maker, shown = contexts(monkeypatch, window=12)
    group = collected([rollout("a", False, 2), rollout("b", False, 3)])
    maker.give(get_method("sdft"), group)
    assert shown == ["ask|expert"]  # 10 tokens: with 2 of the response 12, with 3 too many
    assert [r.sequence.context_ids is None for r in group.rollouts[0]] == [False, True]
    bare = collected([rollout("a", False)], demonstrations=())
    maker.give(get_method("sdft"), bare)
    assert bare.rollouts[0][0].sequence.context_ids is None


def test_rows_that_share_a_source_keep_their_own_prompts(monkeypatch):
    maker, shown = contexts(monkeypatch)
    for prompt in ("first", "second", "first"):
        maker.context(Example(prompt, source="row 1"), "solution", "7")
    assert shown == ["first|7", "second|7"]


def test_the_solution_stands_in_the_user_s_last_message():
    example = Example(
        ({"role": "system", "content": "s"}, {"role": "user", "content": "1 {solution}?"}),
        ("{prompt}",),
    )
    found = with_text(example, "solution", "{prompt} 2", "{prompt} // {solution} // ok")
    assert found.prompt[-1] == {"role": "user", "content": "1 {solution}? // {prompt} 2 // ok"}
    assert found.prompt[0] == example.prompt[0]
    with pytest.raises(ConfigError, match="does not end in a user's message"):
        alien = Example(({"role": "assistant", "content": "x"},))
        with_text(alien, "solution", "y", "{prompt}{solution}")


def test_contexts_are_tokens_of_the_template_that_prompts_have(recipe):
    trainer = SRFTTrainer(args=recipe(method="sdft", reward=UNUSED), reward_funcs=a_third)
    maker, example = trainer.collector.contexts, trainer.setup.train[0].example
    text = example.demonstrations[0]
    expected = tokenize_prompt(
        with_text(example, "solution", text, maker.settings.template),
        trainer.tokenizer,
        trainer.args.data,
    )
    assert maker.context(example, "solution", text) == expected
    trainer.close()


# A server as teacher.


class Fake(BaseHTTPRequestHandler):
    model = None

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.answer({"data": [{"id": "teacher"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert body["model"] == "teacher" and body["max_tokens"] == 1
        choices = []
        for number, ids in enumerate(body["prompt"]):
            logprob_TV = by_hand(self.model, ids[:1], ids[1:])
            entries = [None] + [
                {str(token): {"logprob": logprob_TV[t, token].item()}}
                for t, token in enumerate(ids[1:])
            ]
            choices.append({"index": number, "prompt_logprobs": entries})
        self.answer({"choices": choices[::-1]})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(other_model):
    from transformers import AutoModelForCausalLM

    handler = type("Teacher", (Fake,), {"model": AutoModelForCausalLM.from_pretrained(other_model)})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


def test_a_server_says_what_the_same_model_says_here(recipe, other_model, server):
    said = {}
    for name, teacher in (("path", str(other_model)), ("server", server)):
        config = recipe(method="opd", train={"steps": 2}, reward=UNUSED, teacher={name: teacher})
        config.run.dir += name
        result = SRFTTrainer(args=config, reward_funcs=a_third).train()
        said[name] = read_jsonl(result.run_dir / "metrics.jsonl")
    for ours, theirs in zip(said["path"], said["server"], strict=True):
        assert "teacher/entropy" not in theirs
        for key in ("loss", "teacher/kl", "teacher/gap", "train/teacher_tokens"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-5), key


def test_a_server_that_is_away_or_gives_no_log_probabilities_is_named():
    sequences = [s for s in told() if s.context_ids]
    (packed,) = pack(sequences, None, 1000)
    teacher = ServerTeacher("http://127.0.0.1:9", 1.0)
    with pytest.raises(
        RolloutError, match=r"teacher.server http://127.0.0.1:9: .*is the server up"
    ):
        teacher.score(packed)
    teacher._call = lambda *_: {"data": [{"id": "x"}], "choices": [{"index": 0}] * len(sequences)}
    with pytest.raises(RolloutError, match="no log-probabilities of the prompt"):
        teacher.score(packed)
    teacher.close()


# Second rounds of sampling.


def test_prompts_that_failed_are_sampled_again_behind_more_of_their_demonstration(recipe):
    config = recipe(method="ghpo", train={"steps": 1, "prompts_per_step": 3}, reward=UNUSED)
    asked = []

    def verdict(prompts, completions, **columns):
        asked.append(len(completions))
        return [0.0] * len(completions)

    trainer = SRFTTrainer(args=config, reward_funcs=verdict)
    trainer.setup.demo_scores[:] = [
        [replace(s, reward=1.0, correct=True) for s in scores]
        for scores in trainer.setup.demo_scores
    ]
    requests = []
    generate = trainer.setup.engine.generate
    trainer.setup.engine.generate = lambda r, *a, **k: (
        requests.append(list(r)) or generate(r, *a, **k)
    )
    result = trainer.train()
    (row,) = read_jsonl(result.run_dir / "metrics.jsonl")
    assert len(requests) == 4  # the first round, and a quarter, a half, three quarters
    by_prompt = [sorted(len(r.prompt_ids) for r in some) for some in requests]
    assert all(a < b for a, b in itertools.pairwise(by_prompt))
    assert row["groups/rescued"] == 9
    assert row["rollout/tokens"] > 3 * 3 * 12  # more than one round of 3 x 3 x 12 can hold
    seeds = {r.seed for some in requests for r in some}
    assert len(seeds) == 12


def test_a_prompt_that_is_solved_gets_no_second_round(recipe):
    config = recipe(method="ghpo", train={"steps": 1}, reward=UNUSED)
    trainer = SRFTTrainer(
        args=config, reward_funcs=lambda completions, **_: [1.0] * len(completions)
    )
    result = trainer.train()
    (row,) = read_jsonl(result.run_dir / "metrics.jsonl")
    assert "groups/rescued" not in row
