"""Tools and environments on TRL's contract."""

import asyncio
import threading
from dataclasses import replace

import pytest
from tests.environments.conftest import add

from srft.data.turns import tool_call
from srft.environments.environment_config import EnvironmentConfig
from srft.environments.toolbox import Toolbox, build_toolbox
from srft.errors import ConfigError, DataError, RolloutError
from srft.rewards.scorer import Scorer
from srft.types import Example, Spoken

ROW = Example("Guess.", answer="7", columns={"secret": 7}, source="rows.jsonl:3")


class Guess:
    """A game as TRL's users write them."""

    made = 0

    def __init__(self):
        Guess.made += 1
        self.tries = -1

    def reset(self, **kwargs) -> str | None:
        self.secret, self.tries = kwargs["secret"], 0
        self.row = kwargs
        return f" It is below {self.secret + 10}."

    def guess(self, number: int) -> str:
        """
        Makes a guess.

        Args:
            number: What you think it is.

        Returns:
            Whether it is right.
        """
        self.tries += 1
        if self.tries > 3:
            raise ValueError("Game over.")
        return "right" if number == self.secret else "wrong"

    async def hint(self, strong: bool = False) -> str:
        """
        Asks for a hint.

        Args:
            strong: Whether it may say all.
        """
        await asyncio.sleep(0)
        return str(self.secret) if strong else "?"

    def get_reward(self) -> float:
        return 1.0 / self.tries if self.tries else 0.0

    def _private(self):
        raise AssertionError

    @property
    def expensive(self):
        raise AssertionError("properties are not looked at")


def guess(number):
    return tool_call("guess", {"number": number})


def spoken(text, *calls):
    """A demonstration: calls of tools, then a text."""
    turn = {"role": "assistant", "content": "", "tool_calls": list(calls)}
    results = [{"role": "tool", "name": "guess", "content": "?"} for _ in calls]
    return Spoken(text, [turn, *results, {"role": "assistant", "content": text}])


def outcomes(toolbox, place, *calls):
    (found,) = toolbox.call([(place, list(calls))])
    return [(result.message["content"], result.failed) for result in found]


def test_an_environment_offers_its_methods_and_is_reset_to_the_row():
    toolbox = Toolbox([add], {None: Guess})
    (offered,) = toolbox.offer([ROW])
    assert [tool["function"]["name"] for tool in offered.tools] == ["add", "guess", "hint"]
    assert offered.prompt == ({"role": "user", "content": "Guess."},)
    place = toolbox.enter(offered)
    assert place.prompt[-1]["content"] == "Guess. It is below 17."
    assert place.environment.row["prompt"] == [{"role": "user", "content": "Guess."}]
    assert place.environment.row["answer"] == "7"
    calls = [guess(3), tool_call("hint", {"strong": True}), guess(7)]
    assert outcomes(toolbox, place, *calls) == [("wrong", False), ("7", False), ("right", False)]
    assert outcomes(toolbox, place, tool_call("add", {"a": 1, "b": 2})) == [("3", False)]


def test_errors_are_told_to_the_model():
    toolbox = Toolbox([add], {None: Guess})
    place = toolbox.enter(ROW)
    calls = [
        tool_call("reset", {}),
        tool_call("_private", {}),
        tool_call("get_reward", {}),
        tool_call("add", {"a": 1}),
        tool_call("add", {"a": 1, "b": "x"}),
    ]
    found = outcomes(toolbox, place, *calls)
    assert all(failed for _, failed in found)
    assert found[0][0] == str({"error": "Tool reset not found."})  # in TRL's words
    assert "missing 1 required" in found[3][0] and "unsupported operand" in found[4][0]


@pytest.mark.parametrize("main", [True, False])
def test_a_tool_that_never_answers_is_given_up(main):
    waits = threading.Event()

    def forever() -> str:
        """Waits."""
        waits.wait()
        return "never"

    async def later() -> str:
        """Waits, too."""
        await asyncio.sleep(3600)
        return "never"

    toolbox = Toolbox([forever, later], {None: Guess}, timeout_s=0.05)
    place = toolbox.enter(ROW)
    found = []

    def work():
        found.extend(outcomes(toolbox, place, tool_call("forever", {}), tool_call("later", {})))

    if main:
        work()
    else:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    waits.set()
    assert [text for text, _ in found] == [
        str({"error": f"{name} did not answer within 0.05 s"}) for name in ("forever", "later")
    ]
    made = Guess.made
    toolbox.leave([place])  # a call may still be running in it: it is not used again
    assert toolbox.enter(ROW).environment is not place.environment and Guess.made == made + 1


def test_objects_are_made_once_and_used_again():
    Guess.made = 0
    toolbox = Toolbox([], {None: Guess})
    for _ in range(3):
        places = [toolbox.enter(ROW) for _ in range(4)]
        assert len({id(place.environment) for place in places}) == 4
        toolbox.leave(places)
    assert Guess.made == 4


class Other(Guess):
    def reset(self, **kwargs):
        assert "environment" not in kwargs


def test_several_environments_are_chosen_by_a_column():
    toolbox = Toolbox([], {"guess": Guess, "other": Other})
    rows = [Example("x", columns={"environment": n, "secret": 1}) for n in ("other", "guess")]
    places = [toolbox.enter(row) for row in toolbox.offer(rows)]
    assert [type(place.environment) for place in places] == [Other, Guess]
    assert places[0].prompt[-1]["content"] == "x"
    for place in places:
        place.environment.tries = 2
    with Scorer(toolbox.rewards()) as scorer:
        assert scorer.labels == ("Guess", "Other")
        scores = scorer.score(rows, ["", ""], environments=[p.environment for p in places])
    assert [dict(s.parts) for s in scores] == [
        {"Guess": None, "Other": 0.5},
        {"Guess": 0.5, "Other": None},
    ]
    with pytest.raises(
        DataError, match="<memory>: the column `environment` is 'third'; there are guess"
    ):
        toolbox.offer([Example("x", columns={"environment": "third"})])


def test_reward_functions_see_the_messages_and_the_environments():
    seen = {}

    def reward(prompts, completions, environments, secret, **columns):
        seen.update(prompts=prompts, completions=completions, environments=environments)
        return [float(e.secret == s) for e, s in zip(environments, secret, strict=True)]

    toolbox = Toolbox([], {None: Guess})
    demo = spoken("7", guess(7))
    row = toolbox.offer([ROW])[0]
    with (
        Scorer([reward, "exact", *toolbox.rewards()]) as scorer,
        toolbox.acted([row], [demo]) as acted,
    ):
        (score,) = scorer.score([row], [demo], environments=acted)
        assert acted[0].tries == 1
    assert dict(score.parts) == {"reward": 1.0, "exact": 1.0, "Guess": 1.0}
    assert seen["completions"] == [[dict(message) for message in demo.messages]]
    assert len({id(e) for e in seen["environments"]}) == 1


def test_a_demonstration_s_calls_are_made_again():
    toolbox = Toolbox([], {None: Guess})
    flat = {"name": "guess", "arguments": '{"number": 1}'}  # as some data sets write calls
    demo = spoken("?", flat, flat)
    with toolbox.acted([ROW, ROW], [demo, "plain"]) as acted:
        assert [environment.tries for environment in acted] == [2, 0]


def test_what_is_wrong_is_said_before_a_run():
    def undocumented(a: int) -> int:
        return a

    class NoReset:
        pass

    class Fails(Guess):
        def reset(self, **kwargs):
            raise KeyError("board")

    def broken():
        raise OSError("no server")

    with pytest.raises(ConfigError, match=r"tool .*undocumented: .* A tool has a docstring"):
        Toolbox([undocumented], {})
    with pytest.raises(ConfigError, match="environment NoReset has no method `reset`"):
        Toolbox([], {None: NoReset})
    with pytest.raises(ConfigError, match="environment 'a' cannot be made: OSError: no server"):
        Toolbox([], {"a": broken})
    with pytest.raises(RolloutError, match=r"Fails\.reset failed for rows\.jsonl:3: KeyError"):
        Toolbox([], {None: Fails}).enter(ROW)
    with pytest.raises(ConfigError, match="only one of them could act"):
        build_toolbox(EnvironmentConfig(tools="x.py:f"), [add], None)
    with pytest.raises(ConfigError, match=r"tool 'missing\.py:f': there is no file"):
        build_toolbox(EnvironmentConfig(tools="missing.py:f"), None, None)
    assert build_toolbox(EnvironmentConfig(), None, None) is None


def test_named_in_a_recipe(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Echo:\n    def reset(self, **row): pass\n\n"
        "    def echo(self, text: str) -> str:\n"
        '        """Says it.\n\n        Args:\n            text: What.\n        """\n'
        "        return text\n"
    )
    path = f"{tmp_path}/mine.py:Echo"
    for factory in (path, {"only": path}):
        config = EnvironmentConfig(factory=factory, tools=(f"{__file__}:add",), timeout_s=None)
        toolbox = build_toolbox(config, None, None)
        row = Example("x", columns={"environment": "only"})
        names = [tool["function"]["name"] for tool in toolbox.offer([row])[0].tools]
        assert names == ["add", "echo"]


def test_async_calls_of_a_round_are_awaited_together():
    waiting, all_there = [], asyncio.Event()

    async def meet(number: int) -> str:
        """
        Waits for the others.

        Args:
            number: Who.
        """
        waiting.append(number)
        if len(waiting) == 3:
            all_there.set()
        await all_there.wait()
        return str(number)

    toolbox = Toolbox([meet], {}, timeout_s=60)
    places = [toolbox.enter(ROW) for _ in range(3)]
    found = toolbox.call([(p, [tool_call("meet", {"number": n})]) for n, p in enumerate(places)])
    assert [row[0].message["content"] for row in found] == ["0", "1", "2"]


def test_what_a_tool_returns_as_text():
    values = {"text": "a", "none": None, "list": [1, 2], "dict": {"a": 1},
              "blocks": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
              "half": "\ud800"}  # fmt: skip

    def give(key: str):
        """
        Gives.

        Args:
            key: Which.
        """
        return values[key]

    toolbox = Toolbox([give], {})
    place = toolbox.enter(ROW)
    found = outcomes(toolbox, place, *(tool_call("give", {"key": key}) for key in values))
    assert [text for text, _ in found] == ["a", "None", "[1, 2]", "{'a': 1}", "ab", "?"]


@pytest.mark.parametrize("arguments", ['{"number": ', "[1]", 7])
def test_a_call_of_a_demonstration_that_cannot_be_read_names_its_row(arguments):
    call = {"type": "function", "function": {"name": "guess", "arguments": arguments}}
    demo = Spoken("right", [{"role": "assistant", "content": "", "tool_calls": [call]}])
    toolbox = Toolbox([], {None: Guess})
    with (
        pytest.raises(DataError, match=r"rows\.jsonl:3: a call of a tool"),
        toolbox.acted([ROW], [demo]),
    ):
        pass


def test_an_environment_is_told_all_right_answers_as_reward_functions_are():
    toolbox = Toolbox([], {None: Guess})
    (offered,) = toolbox.offer([replace(ROW, other_answers=("seven",))])
    assert toolbox.enter(offered).environment.row["answer"] == ["7", "seven"]
