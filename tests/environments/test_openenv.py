"""OpenEnv's own classes in runs: in this process, and behind its server."""

import socket
import sys
import threading
import time

import pytest

from srft import SRFTTrainer
from srft.environments.openenv import openenv_environment
from srft.environments.toolbox import Toolbox
from srft.errors import ConfigError
from srft.runs.files import read_jsonl
from srft.types import Example

WHY = "openenv-core is not installed: pip install openenv-core"


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openenv", None)
    monkeypatch.setitem(sys.modules, "openenv.core", None)
    with pytest.raises(ConfigError, match="pip install openenv-core"):
        openenv_environment("http://localhost:1", int)


@pytest.fixture(scope="module")
def counting():
    """An environment that adds b times a, and ends with a reward at 60 or more."""
    pytest.importorskip("openenv.core", reason=WHY)
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State
    from pydantic import Field

    class Count(Action):
        """Counts on."""

        a: int = Field(description="By how much.")
        b: int = Field(1, description="How often.", ge=0, le=9)

    class Seen(Observation):
        value: int

    class Counting(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed=None, episode_id=None, **kwargs):
            assert not kwargs
            self.value = seed or 0
            return Seen(value=self.value)

        def step(self, action, timeout_s=None, **kwargs):
            self.value += action.a * action.b
            return Seen(value=self.value, reward=0.25, done=self.value >= 60)

        @property
        def state(self):
            return State()

    return Counting, Count, Seen


@pytest.fixture(scope="module")
def server(counting):
    """The address of OpenEnv's own server."""
    import uvicorn
    from openenv.core.env_server.http_server import create_fastapi_app

    made, action, seen = counting
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_fastapi_app(made, action, seen, max_concurrent_envs=64)
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started and thread.is_alive():
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(20)


@pytest.mark.parametrize("where", ["here", "server"])
def test_an_episode(counting, where, request):
    made, action, _ = counting
    connect = made if where == "here" else request.getfixturevalue("server")
    kind = openenv_environment(connect, action, name="Counting", tool="count")
    toolbox = Toolbox([], {None: kind})
    row = Example("Count.", columns={"seed": 50, "other": 1})
    schema = toolbox.offer([row])[0].tools[0]["function"]
    assert (schema["name"], schema["description"]) == ("count", "Counts on.")
    assert schema["parameters"]["required"] == ["a"]
    assert schema["parameters"]["properties"] == {
        "a": {"type": "integer", "description": "By how much."},
        "b": {"type": "integer", "description": "How often."},
    }
    for _ in range(2):  # the second in the same object, after reset
        place = toolbox.enter(row)
        assert place.prompt[-1]["content"] == 'Count.\n{"value": 50}'
        calls = [{"a": 4}, {"a": 1, "b": 99}, {"a": 2, "b": 3}, {"a": 1}]
        made_calls = [{"function": {"name": "count", "arguments": call}} for call in calls]
        results = toolbox.call([(place, made_calls)])[0]
        told = [result.message["content"] for result in results]
        assert told[0] == '{"value": 54}' and told[2] == '{"value": 60}'
        assert "less than or equal to 9" in told[1] and "the episode is over" in told[3]
        assert [result.failed for result in results] == [False, True, False, True]
        assert place.environment.get_reward() == 0.5
        toolbox.leave([place])
    toolbox.close()


def test_a_run(counting, server, tool_recipe, calls_at_random):
    kind = openenv_environment(server, counting[1], name="Counting", tool="count")
    rows = [{"prompt": [{"role": "user", "content": "Count."}], "seed": n} for n in range(4)]
    args = tool_recipe(train={"steps": 2})
    trainer = SRFTTrainer(args=args, train_dataset=rows, environment_factory=kind)
    metrics = read_jsonl(trainer.train().run_dir / "metrics.jsonl")
    assert len(metrics) == 2 and all(row["tools/calls"] > 0 for row in metrics)
    assert any(row["reward/mean"] > 0 for row in metrics)


def test_what_is_no_action(counting):
    with pytest.raises(ConfigError, match="subclass of OpenEnv's Action"):
        openenv_environment(counting[0], int)
