"""Everything that can be wrong is looked at here, before any compute is spent."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress as ProgressBar
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srft.config import SRFTConfig
from srft.data.reading import Splits
from srft.data.template import Template, read_template
from srft.environments.toolbox import Toolbox
from srft.environments.tools import Tools, build_tools, tokenizing
from srft.errors import ConfigError, DataError
from srft.evaluation.evaluate import tokenize_problems
from srft.evaluation.problems import select, with_system
from srft.evaluation.run import evaluation_sets
from srft.model.adapters import reshard
from srft.model.loading import check_vocabulary, load_tokenizer
from srft.model.output_head import unwrap
from srft.model.policy import Policy
from srft.model.scoring_check import check_scoring
from srft.objective.method import Method
from srft.objective.methods import get_method
from srft.objective.switches import Switches
from srft.parallel.replica import ReplicaEngine
from srft.parallel.world import World
from srft.rewards.audit import check_answers, check_demonstrations
from srft.rewards.scorer import Score, Scorer
from srft.rollout.check import allowed_mismatch
from srft.rollout.engine import build_engine
from srft.runs.run_dir import RunDir
from srft.trainer.fitting import fit_memory, measure_lengths
from srft.trainer.given import Given
from srft.trainer.method_checks import (
    check_data,
    check_further,
    check_lengths,
    check_references,
    check_teacher,
    check_tools,
    reads_demonstrations,
)
from srft.trainer.models import build_policy, build_teacher, choose_device, reopen_policy
from srft.trainer.teacher import PolicyTeacher, ServerTeacher, Teacher
from srft.trainer.train_config import Stage
from srft.types import Example, RolloutEngine, SamplingParams, TokenizedExample

_SHOWN = 5
_FEW = 0.03  # of the demonstrations may be dropped without a warning
_AHEAD_CAP = 2.0


@dataclass(frozen=True)
class EvaluationData:
    """One set of problems and the verifier that judges it."""

    problems: list[TokenizedExample]
    scorer: Scorer


@dataclass
class Setup:
    """All that a run works with. ``demo_scores[row]`` are the scores of the demonstrations of ``train[row]``.
    ``sampled``: what ``engine`` is given, the policy's model or a copy. ``longest``: the longest sequence
    that it is asked for, in tokens."""

    config: SRFTConfig
    given: Given
    world: World
    policy: Policy
    sampled: PreTrainedModel
    engine: RolloutEngine
    sampling: SamplingParams
    scorer: Scorer
    train: list[TokenizedExample]
    demo_scores: list[list[Score]]
    evaluation: dict[str, EvaluationData]
    methods: list[Method]
    interleaved: Mapping[str, Method]
    notes: list[str]
    longest: int
    teacher: Teacher | None = None
    max_mismatch: float | None = None
    tools: Tools | None = None
    closed: bool = False

    def decode(self, ids: Sequence[int]) -> str:
        """Response tokens as text, special tokens left out."""
        return self.policy.decode(ids, skip_special_tokens=True)

    def policy_of(self, method: Method) -> Policy:
        """The policy that ``method`` trains is the one that it samples from."""
        return self.policy.at(self.sampling.temperature if method.rollouts else 1.0)

    def teacher_of(self, method: Method) -> Teacher | None:
        """Who scores the responses of ``method`` a second time, or None."""
        if method.teacher is None:
            return None
        if method.teacher == "model":
            return self.teacher
        frozen = method.teacher == "reference" or self.config.teacher.frozen
        return PolicyTeacher(self.policy_of(method), itself=not frozen, reference=frozen)

    def close(self) -> None:
        """Ends the engine and the verifiers, and gives the model back as it was."""
        if self.closed:
            return
        self.closed = True
        self.policy.close()
        self.engine.close()
        for scorer in (self.scorer, *(data.scorer for data in self.evaluation.values())):
            scorer.close()
        if isinstance(self.teacher, ServerTeacher):
            self.teacher.close()

    def reopen(self) -> None:
        """Prepares the model again and starts an engine, after ``close``; verifiers start when needed.

        Raises ModelError where the model was changed meanwhile so that it no longer fits.
        """
        if not self.closed:
            return
        self.policy = reopen_policy(self.policy, self.given.model is not None)
        self.closed = False
        self.engine = _engine(
            self.config, self.policy, self.sampled, self.longest, self.sampling, self.tools
        )
        if self.sampled is not self.policy.model:
            self.engine.update_weights()
        if isinstance(self.teacher, ServerTeacher):
            self.teacher = ServerTeacher(self.teacher.url, self.config.teacher.timeout_s)


def set_up(config: SRFTConfig, given: Given, console: Console, world: World, run: RunDir) -> Setup:
    """Reads data, builds the model and checks that they fit; ``run`` may hold what a resumed run has chosen.

    Raises:
        ConfigError, DataError, ModelError, RewardError.
    """
    methods = build_methods(config)
    toolbox = given.toolbox(config)
    check_tools(methods, toolbox)
    random.seed(config.train.seed)
    np.random.seed(config.train.seed % 2**32)
    torch.manual_seed(config.train.seed)
    model = None if given.model is None else unwrap(given.model)
    if not config.model.path and model is None:
        raise ConfigError(
            "model.path: not set; give a folder or a hub id, such as model.path=Qwen/Qwen3-0.6B"
        )
    if config.model.dtype == "float16":
        raise ConfigError(
            "model.dtype: float16 is for evaluation only, since losses are not scaled; take bfloat16 or "
            "float32"
        )
    tokenizer = _tokenizer(config, given, model)
    tools = build_tools(toolbox, tokenizer, config.data)
    splits = given.read(config, toolbox)
    notes: list[str] = []
    examples, held_out = _tokenize(config, splits, tokenizer, notes, console, tools)
    with ExitStack() as undo:
        scorer = given.scorer(config, toolbox)
        undo.callback(scorer.close)
        with console.status("verifying answers and demonstrations"):
            examples, demo_scores = _judge(
                config, methods, given, examples, scorer, notes, world, toolbox
            )
        check_data(config, methods, examples)
        needs_reference = any(m.reads_reference(config.teacher.frozen) for m in methods)
        device = choose_device(config)
        for name, problems in held_out.items():
            scorer.expect([p.example for p in problems], f"evaluation data {name}")
        evaluation = _evaluation(config, held_out, tokenizer, scorer, tools)
        asked = [data.problems for data in evaluation.values()]
        lengths = measure_lengths(config, methods, examples, asked)
        room = fit_memory(config, lengths, model, device, world, run)
        config = room.config
        policy, sampled = build_policy(config, model, tokenizer, device, world, needs_reference)
        undo.callback(policy.close)
        check_vocabulary(policy.model, tokenizer)
        sampling = _sampling(config, tokenizer, policy.model, tools)
        check_lengths(config, methods, policy.model, examples)
        teacher = build_teacher(config, methods, policy, device, world)
        check_scoring(policy)
        if isinstance(teacher, PolicyTeacher):
            check_lengths(config, methods, teacher.policy.model, examples)
            check_scoring(teacher.policy)
        engine = _engine(config, policy, sampled, lengths.asked, sampling, tools)
        reshard(policy.model)  # the optimizer is to be given the shards
        with console.status("trying the largest micro-batch"):
            config, line = room.tried(policy)
        console.print(line, highlight=False, soft_wrap=True)
        undo.pop_all()
    return Setup(
        config=config,
        given=given,
        world=world,
        policy=policy,
        sampled=sampled,
        engine=engine,
        sampling=sampling,
        scorer=scorer,
        train=examples,
        demo_scores=demo_scores,
        evaluation=evaluation,
        methods=methods,
        interleaved=_interleaved(config, methods),
        notes=notes,
        longest=lengths.asked,
        teacher=teacher,
        max_mismatch=allowed_mismatch(config.rollout, policy.computes_in(), policy.device.type),
        tools=tools,
    )


def _engine(
    config: SRFTConfig,
    policy: Policy,
    sampled: PreTrainedModel,
    longest: int,
    sampling: SamplingParams,
    tools: Tools | None,
) -> RolloutEngine:
    with policy.compute():
        engine = build_engine(sampled, policy.tokenizer, config.rollout, longest)
    if sampled is not policy.model:
        engine = ReplicaEngine(engine, sampled, policy.model)
    return engine if tools is None else tools.over(engine, sampling.stop_token_ids)


def _tokenizer(
    config: SRFTConfig, given: Given, model: PreTrainedModel | None
) -> PreTrainedTokenizerBase:
    tokenizer = given.tokenizer
    if tokenizer is None:
        path = config.model.path if model is None else model.name_or_path
        tokenizer = load_tokenizer(config.model.model_copy(update={"path": path}))
    if config.data.chat_template not in ("auto", "none"):
        tokenizer = copy.copy(tokenizer)  # the one that was given stays as it is
        # So that the exported model is asked the way it was trained.
        tokenizer.chat_template = read_template(config.data.chat_template)
    return tokenizer


def build_methods(config: SRFTConfig) -> list[Method]:
    """The method of each stage with the recipe's switches.

    Raises:
        ConfigError: an unknown name, or a switch or a stage's reference that the method does not read.
    """
    longest = config.rollout.max_tokens
    methods = [
        get_method(stage.method, _corrected(config, stage), longest_response=longest)
        for stage in config.resolved_stages
    ]
    check_references(config, methods)
    check_teacher(config, methods)
    check_further(config, methods)
    return methods


def _corrected(config: SRFTConfig, stage: Stage) -> Switches:
    """The stage's switches. Rollouts made one step ahead are by another policy than the one that is
    trained, which is corrected for unless the recipe says otherwise."""
    switches = stage.objective
    if not config.rollout.ahead or "importance_cap" in switches.model_fields_set:
        return switches
    if not get_method(stage.method).rollouts:
        return switches
    return switches.model_copy(update={"importance_cap": _AHEAD_CAP})


def _interleaved(config: SRFTConfig, methods: Sequence[Method]) -> dict[str, Method]:
    """The methods that others take turns with, by name."""
    names = {method.interleave for method in methods if method.interleave}
    return {name: get_method(name, longest_response=config.rollout.max_tokens) for name in names}


def _tokenize(
    config: SRFTConfig,
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    notes: list[str],
    console: Console,
    tools: Tools | None,
) -> tuple[list[TokenizedExample], dict[str, list[TokenizedExample]]]:
    tokenize = tokenizing(tools)
    with _progress(console) as bar:
        train, report = tokenize(
            splits.train, tokenizer, config.data, _ticker(bar, "tokenizing", len(splits.train))
        )
    notes += [*splits.notes, f"training data: {report.summary()}"]
    evaluation = {}
    for name, examples in splits.eval.items():
        evaluation[name], report = tokenize(examples, tokenizer, config.data)
        notes.append(f"evaluation data {name}: {report.kept:,} of {report.total:,} rows kept")
    return train, evaluation


def _evaluation(
    config: SRFTConfig,
    held_out: Mapping[str, list[TokenizedExample]],
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    tools: Tools | None,
) -> dict[str, EvaluationData]:
    """The recipe's evaluation data under the run's verifier, and the suites or the dataset that
    ``evaluation`` names under their own; its ``limit`` and ``system_prompt`` are for all of them."""
    sets, settings = {}, config.evaluation
    for name, problems in held_out.items():
        examples = select([p.example for p in problems], settings.limit, settings.seed)
        ids = set(map(id, examples))
        asked = [problem for problem in problems if id(problem.example) in ids]
        if settings.system_prompt is not None:
            other = [
                with_system(replace(e, demonstrations=()), settings.system_prompt) for e in examples
            ]
            asked = tokenize_problems(other, tokenizer, config.data, tools)
        sets[name] = EvaluationData(asked, scorer)
    if settings.suites or settings.dataset:
        toolbox = None if tools is None else tools.toolbox
        for chosen in evaluation_sets(settings, config.reward, toolbox):
            if chosen.benchmark.name in sets:
                raise ConfigError(
                    f"data.eval and evaluation name a set {chosen.benchmark.name!r} each: call yours "
                    f"otherwise, such as data.eval={{my-{chosen.benchmark.name}: SOURCE}}"
                )
            problems = tokenize_problems(chosen.problems, tokenizer, config.data, tools)
            sets[chosen.benchmark.name] = EvaluationData(problems, chosen.scorer(toolbox))
    return sets


UNVERIFIED = "no row has an answer: demonstrations are learned as they are, unverified"


def learns_unverified(
    config: SRFTConfig,
    methods: Sequence[Method],
    given: Given,
    examples: Sequence[TokenizedExample],
) -> bool:
    """Whether there is nothing to judge by and nobody to be judged but the demonstrations."""
    answered = any(tokenized.example.answer is not None for tokenized in examples)
    supervised = not any(method.rollouts for method in methods)
    return supervised and not answered and given.names_no_reward(config)


def _judge(
    config: SRFTConfig,
    methods: Sequence[Method],
    given: Given,
    examples: list[TokenizedExample],
    scorer: Scorer,
    notes: list[str],
    world: World,
    toolbox: Toolbox | None,
) -> tuple[list[TokenizedExample], list[list[Score]]]:
    """Answers against themselves, demonstrations by the verifier; what is left, and the demonstrations'
    scores.

    Raises:
        DataError, RewardError.
    """
    if learns_unverified(config, methods, given, examples):
        notes.append(UNVERIFIED)
        right = Score(1.0, {}, correct=True)
        return examples, [[right] * len(example.demonstration_ids) for example in examples]
    examples = _check_answers(config, examples, scorer, notes, world)
    scorer.expect([tokenized.example for tokenized in examples], "training data")
    read = any(map(reads_demonstrations, methods))
    if not read and scorer.calls_functions:  # which may cost money, or a judge's time
        prompts = [replace(e, demonstration_ids=(), demonstration_masks=()) for e in examples]
        return prompts, [[] for _ in examples]
    return _score_demonstrations(config, examples, scorer, notes, world, toolbox, read)


def _check_answers(
    config: SRFTConfig,
    examples: list[TokenizedExample],
    scorer: Scorer,
    notes: list[str],
    world: World,
) -> list[TokenizedExample]:
    """Rows whose ground truth does not verify against itself could never be rewarded.

    Raises:
        DataError: there are some, and ``data.invalid_rows`` is error.
    """
    failed = world.from_main(
        lambda: check_answers([tokenized.example for tokenized in examples], scorer).failed,
        "the verification of answers",
    )
    if not failed:
        return examples
    shown = "\n".join(f"  {finding}" for finding in failed[:_SHOWN])
    text = (
        f"{len(failed):,} of {len(examples):,} answers do not verify against themselves:\n{shown}"
    )
    if config.data.invalid_rows == "error" or len(failed) == len(examples):
        raise DataError(
            f"{text}\nFix the answer column, use another reward, or set data.invalid_rows=drop to "
            "leave these rows out"
        )
    notes.append(f"{text}\nleft out (data.invalid_rows=drop)")
    # Lists that were put together in Python have a row of each number more than once.
    wrong = {(finding.source, finding.answer) for finding in failed}

    def stays(example: Example) -> bool:
        answers = (example.answer, *example.other_answers)
        return wrong.isdisjoint((example.source, answer) for answer in answers)

    return [tokenized for tokenized in examples if stays(tokenized.example)]


def _score_demonstrations(
    config: SRFTConfig,
    examples: Sequence[TokenizedExample],
    scorer: Scorer,
    notes: list[str],
    world: World,
    toolbox: Toolbox | None,
    read: bool,
) -> tuple[list[TokenizedExample], list[list[Score]]]:
    """Scores every demonstration with the verifier that scores rollouts and leaves those out that fail,
    where the recipe says so. read: a method reads them.

    Raises:
        RewardError: a reward function failed.
        DataError: no demonstration passes, so the verifier cannot be the right one.
    """
    report = world.from_main(
        lambda: check_demonstrations(
            [tokenized.example for tokenized in examples],
            scorer,
            [tokenized.demonstration_ids for tokenized in examples],
            None if toolbox is None else toolbox.acted,
        ),
        "the verification of demonstrations",
    )
    policy = config.reward.failed_demonstrations
    if report.failed:
        shown = "\n".join(f"  {finding}" for finding in report.failed[:_SHOWN])
        share = len(report.failed) / report.total
        text = (
            f"{len(report.failed):,} of {report.total:,} demonstrations ({share:.1%}) fail their own "
            f"verifier:\n{shown}"
        )
        if policy == "drop" and not report.passed and read:
            raise DataError(
                f"{text}\nIs {' + '.join(scorer.labels)} the right reward, and does the answer column "
                "hold the answer? `srft data check` shows them as tokens"
            )
        if policy == "drop" and share > _FEW and read:
            text = f"WARNING: part of the data is LEFT OUT of training. {text}"
        notes.append(f"{text}\nreward.failed_demonstrations={policy}")
    kept_examples, kept_scores = [], []
    for example, scores in zip(examples, report.scores, strict=True):
        kept = [policy == "keep" or score.correct for score in scores]
        ids = tuple(itertools.compress(example.demonstration_ids, kept))
        masks = tuple(itertools.compress(example.demonstration_masks, kept))
        kept_examples.append(replace(example, demonstration_ids=ids, demonstration_masks=masks))
        kept_scores.append(list(itertools.compress(scores, kept)))
    return kept_examples, kept_scores


def _sampling(
    config: SRFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    tools: Tools | None,
) -> SamplingParams:
    """Rollouts end with the very token that demonstrations end with."""
    params = config.rollout.sampling_params()
    ends = Template(tokenizer, config.data).stop_token_ids(model.generation_config)
    if tools is not None:
        ends = tools.ends(ends)
    return replace(params, stop_token_ids=tuple(dict.fromkeys((*ends, *params.stop_token_ids))))


def _progress(console: Console) -> ProgressBar:
    return ProgressBar(console=console, transient=True, disable=not console.is_terminal)


def _ticker(bar: ProgressBar, text: str, total: int) -> Callable[[int, int], None]:
    task = bar.add_task(text, total=total)
    return lambda done, of: bar.update(task, completed=done, total=of)
