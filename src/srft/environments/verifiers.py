"""Tasks of ``verifiers`` as rows, and their scoring as a reward function.

    tasks = VerifiersTasks("my-taskset")
    SRFTTrainer(train_dataset=tasks.rows(), reward_funcs=tasks.reward)

Facts as of verifiers 0.4.0, whose environments are tasksets (``verifiers.v1``) that a program, the harness,
works on in a runtime of its own. Here the policy answers itself: tasks that need more are refused.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from srft.errors import ConfigError, RewardError

COLUMN = "verifiers_task"


class VerifiersTasks:
    """The tasks of a taskset.

    Args:
        taskset: the id of an installed taskset, or a ``Taskset``.
        limit: the first tasks alone; required where a taskset has no end.
        config: settings of the taskset, by name; only with an id.

    Raises:
        ConfigError: the package or the taskset is not there, or a task needs what is not here.
    """

    def __init__(self, taskset: Any, limit: int | None = None, **config: Any) -> None:
        try:
            from verifiers import v1
            from verifiers.v1.state import state_cls
        except ImportError as error:
            raise ConfigError(
                f"tasks of verifiers need its version 0.4 ({error}): pip install 'verifiers>=0.4'"
            ) from error
        name = taskset if isinstance(taskset, str) else type(taskset).__name__
        self._v1, self._state, self._name = v1, state_cls, f"verifiers taskset {name}"
        found = self._loaded(taskset, config)
        if limit is None and not found.bounded:
            raise ConfigError(f"{self._name} has no end: give `limit`")
        self._tasks: dict[str, Any] = {}
        shared = bool(type(found).toolsets(found.config))
        for task in islice(found, limit):
            needs = "tools behind MCP servers" if shared else _needs(task, v1)
            if needs:
                raise ConfigError(f"{self._name}, task {task.data.idx}: {needs}. {_INSTEAD}")
            self._tasks[task.key] = task
        if not self._tasks:
            raise ConfigError(f"{self._name} has no tasks")

    def _loaded(self, taskset: Any, config: Mapping[str, Any]) -> Any:
        v1 = self._v1
        if isinstance(taskset, v1.Taskset):
            return taskset
        try:
            env, harness = v1.environment_class(taskset), v1.default_harness_id(taskset)
            kind = v1.taskset_config_type(taskset)
            found = v1.load_taskset(kind.model_validate({"id": taskset, **config}))
        except Exception as error:  # of many kinds: the taskset's own code
            raise ConfigError(
                f"{self._name} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if env is not v1.SingleAgentEnv or harness == taskset:
            raise ConfigError(f"{self._name}: an environment or harness of its own. {_INSTEAD}")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Rows of a dataset; they can be written as JSON lines."""
        return [_row(key, task) for key, task in self._tasks.items()]

    async def reward(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        verifiers_task: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """A reward function: the weighted sum of a task's rewards. Its metrics are logged by name."""
        if missing := [key for key in verifiers_task if key not in self._tasks]:
            raise RewardError(f"{self._name} has no task {missing[0]}: write its rows again")
        tasks = [self._tasks[key] for key in verifiers_task]
        traces = list(map(self._trace, tasks, prompts, completions))
        await asyncio.gather(*(task.score(t) for task, t in zip(tasks, traces, strict=True)))
        metrics = defaultdict[str, list[float]](list)
        for name, value in chain.from_iterable(trace.metrics.items() for trace in traces):
            metrics[name].append(float(value))
        for name, values in metrics.items() if log_metric else ():
            log_metric(name, sum(values) / len(values))  # type: ignore[misc]
        return [float(trace.reward) for trace in traces]

    def _trace(self, task: Any, prompt: Sequence[Any], said: Sequence[Any]) -> Any:
        v1 = self._v1
        recorded = v1.TraceTask(
            type=type(task).__name__, data=task.data, key=task.key, hash=task.hash
        )
        agent = v1.AgentInfo(config=v1.AgentConfig())
        trace = v1.Trace(task=recorded, agent=agent, state=self._state(type(task))())
        for k, message in enumerate([*prompt, *_with_ids(said)]):
            sampled = k >= len(prompt) and message["role"] == "assistant"
            node = {"message": message, "parent": k - 1 if k else None, "sampled": sampled}
            trace.nodes.append(v1.MessageNode.model_validate(node))
        trace.stop("agent_completed")
        trace.ok = True
        return trace


_INSTEAD = (
    "Only tasks that are answered in messages and scored from them can be trained on here; serve others with "
    "verifiers, or write them as a class with tools (docs/environments.md)"
)


def _needs(task: Any, v1: Any) -> str | None:
    """What a task needs that is not here."""
    from verifiers.v1.utils.decorators import discover_decorated

    kind, data = type(task), task.data
    wanted = [
        f"{part} {fn.__name__!r} reads the runtime"
        for part in ("reward", "metric")
        for fn in task.hooks(part)
        if getattr(inspect.signature(fn).parameters.get("runtime"), "default", None)
        is inspect.Parameter.empty
    ]
    changed = [
        f"the hook `{n}`"
        for n in ("setup", "finalize")
        if getattr(kind, n) is not getattr(v1.Task, n)
    ]
    between = [*task.hooks("stop"), *discover_decorated(task, "intercept")]
    steps = [f"the hook {fn.__name__!r} between turns" for fn in between]
    parts = data.prompt if isinstance(data.prompt, list) else []
    found = {
        "tools behind MCP servers": bool(kind.toolsets(task.config)),
        "a container": kind.NEEDS_CONTAINER or data.image is not None,
        "a user that opens the conversation": not data.prompt,
        "images or other content that is not text": any(
            not isinstance(m.content, str | None) for m in parts
        ),
        "rewards (it has none)": not task.hooks("reward") and not task.config.judges,
    }
    needs = [*(name for name, there in found.items() if there), *wanted, *changed, *steps]
    return f"needs {', '.join(needs)}" if needs else None


def _row(key: str, task: Any) -> dict[str, Any]:
    data = task.data
    asked = data.prompt
    if isinstance(asked, str):
        messages = [{"role": "user", "content": asked}]
    else:
        messages = [message.model_dump(exclude_none=True) for message in asked]
    if data.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": data.system_prompt})
    answer = getattr(data, "answer", None)
    return {"prompt": messages, COLUMN: key} | ({} if answer is None else {"answer": str(answer)})


def _with_ids(said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with tool calls as verifiers writes them: numbered, with arguments as JSON."""
    found, made, told = [], 0, 0
    for message in said:
        message = dict(message)
        if message.get("tool_calls"):
            calls = [call["function"] for call in message["tool_calls"]]
            message["tool_calls"] = [
                {
                    "id": f"call_{made + k}",
                    "name": call["name"],
                    "arguments": json.dumps(call["arguments"]),
                }
                for k, call in enumerate(calls)
            ]
            made += len(calls)
        if message["role"] == "tool":
            message["tool_call_id"] = f"call_{told}"
            told += 1
        found.append(message)
    return found
