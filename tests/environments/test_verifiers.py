"""Tasks of verifiers: its rows and rewards in a run, against its own scoring, and what is refused."""

import asyncio
import json
import sys

import pytest
from tests.environments.conftest import add

from srft import SRFTTrainer
from srft.data.turns import tool_call
from srft.environments.verifiers import COLUMN, VerifiersTasks
from srft.errors import ConfigError, RewardError
from srft.runs.files import read_jsonl

WHY = "verifiers is not installed: pip install 'verifiers>=0.4'"

TASKSET = """
import verifiers.v1 as vf

class SumData(vf.TaskData):
    answer: int

class SumTask(vf.Task[SumData]):
    @vf.reward(weight=2.0)
    async def right(self, task, trace):
        return float(str(task.answer) in trace.last_reply)

    @vf.reward(weight=0.5)
    async def short(self, trace):
        return {"brief": float(len(trace.last_reply) < 40), "turns": float(trace.num_turns == 1)}

    @vf.metric
    async def spoken(self, trace):
        return float(len(trace.assistant_messages[-1].content))

    @vf.metric
    async def told(self, trace):
        return float(len(trace.tool_messages))

class SumConfig(vf.TasksetConfig):
    size: int = 3

class Sums(vf.Taskset[SumTask, SumConfig]):
    def load(self):
        for n in range(self.config.size):
            data = SumData(prompt=f"What is {n} + 4?", system_prompt="Be brief.", answer=n + 4)
            yield SumTask(data, self.config.task)

__all__ = ["Sums"]
"""


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(ConfigError, match=r"pip install 'verifiers>=0\.4'"):
        VerifiersTasks("sums")


@pytest.fixture
def v1(tmp_path, monkeypatch):
    """The package, and an installed taskset ``toy-sums``."""
    found = pytest.importorskip("verifiers.v1", reason=WHY)
    (tmp_path / "toy_sums.py").write_text(TASKSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_sums", raising=False)
    return found


def scores(tasks, said, logged=None):
    rows = tasks.rows()[: len(said)]
    log = None if logged is None else logged.__setitem__
    prompts, keys = [row["prompt"] for row in rows], [row[COLUMN] for row in rows]
    return asyncio.run(tasks.reward(prompts, said, keys, log_metric=log))


def test_rows_and_rewards(v1):
    tasks, logged = VerifiersTasks("toy-sums", size=4, limit=3), {}
    rows = tasks.rows()
    assert [row["answer"] for row in rows] == ["4", "5", "6"]
    assert rows[1]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 4?"},
    ]
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call("add", {"a": 2, "b": 4})]}
    said = [
        [{"role": "assistant", "content": "It is 4."}],
        [{"role": "assistant", "content": "It is 7, " + "of course " * 9}],
        [
            call,
            {"role": "tool", "name": "add", "content": "6"},
            {"role": "assistant", "content": "6"},
        ],
    ]
    assert scores(tasks, said, logged) == [3.0, 0.5, 2.5]
    assert logged == {"spoken": (8 + 99 + 1) / 3, "told": 1 / 3}
    with pytest.raises(RewardError, match="no task other: write its rows again"):
        asyncio.run(tasks.reward([rows[0]["prompt"]], said[:1], ["other"]))


def test_a_run_with_tools(v1, tool_recipe, calls_at_random):
    tasks = VerifiersTasks("toy-sums")
    trainer = SRFTTrainer(
        args=tool_recipe(train={"steps": 2}),
        train_dataset=tasks.rows(),
        reward_funcs=tasks.reward,
        tools=[add],
    )
    metrics = read_jsonl(trainer.train().run_dir / "metrics.jsonl")
    assert len(metrics) == 2
    assert all(row["reward/mean"] > 0 and row["tools/calls"] > 0 for row in metrics)


def test_a_recipe(v1, tool_recipe, tmp_path):
    game = tmp_path / "game.py"
    game.write_text(
        "from srft.environments.verifiers import VerifiersTasks\n"
        "tasks = VerifiersTasks('toy-sums')\n"
    )
    rows = VerifiersTasks("toy-sums").rows()
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = tool_recipe(
        data={"train": str(tmp_path / "rows.jsonl")},
        reward={"function": f"{game}:tasks.reward"},
        train={"steps": 2},
    )
    metrics = read_jsonl(SRFTTrainer(args=recipe).train().run_dir / "metrics.jsonl")
    assert len(metrics) == 2 and all(row["reward/mean"] > 0 for row in metrics)


def test_what_is_refused(v1):
    class Task(v1.Task):
        @v1.reward
        async def one(self, trace):
            return 1.0

    class Setup(Task):
        async def setup(self, trace, runtime):
            pass

    class Container(Task):
        NEEDS_CONTAINER = True

    class Reads(Task):
        @v1.reward
        async def files(self, runtime):
            return 1.0

    class Stops(Task):
        @v1.stop
        async def enough(self, trace: v1.Trace) -> bool:
            return True

    class Rewrites(Task):
        @v1.intercept
        async def rewrite(self, request: v1.Request) -> None:
            return None

    class Tools(Task):
        @classmethod
        def toolsets(cls, config):
            return [object()]

    def tasks(kind, prompt="Hello", **options):
        class Set(v1.Taskset):
            INFINITE = options.pop("infinite", False)

            def load(self):
                yield kind(v1.TaskData(prompt=prompt))

        return VerifiersTasks(Set(v1.TasksetConfig()), **options)

    picture = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert len(tasks(Task).rows()) == 1
    for made, why in [
        (lambda: tasks(Setup), "task 0: needs the hook `setup`"),
        (lambda: tasks(Container), "needs a container"),
        (lambda: tasks(Reads), "reward 'files' reads the runtime"),
        (lambda: tasks(Stops), "hook 'enough' between turns"),
        (lambda: tasks(Rewrites), "hook 'rewrite' between turns"),
        (lambda: tasks(Tools), "tools behind MCP servers"),
        (lambda: tasks(v1.Task), "rewards"),
        (lambda: tasks(Task, None), "a user that opens the conversation"),
        (lambda: tasks(Task, picture), "content that is not text"),
        (lambda: tasks(Task, infinite=True), "no end: give `limit`"),
        (lambda: tasks(Task, limit=0), "has no tasks"),
        (lambda: VerifiersTasks("no-such-taskset"), "cannot be loaded.*not found"),
        (lambda: VerifiersTasks("toy-sums", sizes=4), "cannot be loaded.*sizes"),
    ]:
        with pytest.raises(ConfigError, match=f"(?s){why}"):
            made()
