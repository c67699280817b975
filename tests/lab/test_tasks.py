"""The generators: deterministic, right, and never shared between training and evaluation."""

import json
import os
import re
import subprocess
import sys

import pytest
from benchmarks.lab.restyle import WORDS, restyle
from transformers import AutoTokenizer
from typer.testing import CliRunner

from srft.cli import app
from srft.lab import (
    FAMILIES,
    IN_DISTRIBUTION,
    OUT_OF_DISTRIBUTION,
    TASK_SETS,
    base_model_path,
    lab_eval,
    lab_train,
    make_problem,
)
from srft.lab.tasks import is_held_out

SAMPLES = 60


# A second implementation of the arithmetic and of every family's meaning, which reads only the
# prompt text and shares no code with the generators.
def evaluate(expression: str) -> int:
    assert re.fullmatch(r"\d [-+*] \d", expression), expression
    return eval(expression) % 10


def solve_assignments(lines: list[str], known: dict[str, int]) -> dict[str, int]:
    pending = [line.split(" = ") for line in lines]
    while pending:
        ready = [(k, e) for k, e in pending if e.split()[0].isdigit() or e.split()[0] in known]
        assert ready, f"no assignment can be evaluated among {pending}"
        for name, expression in ready:
            first, op, second = expression.split()
            known[name] = evaluate(f"{known.get(first, first)} {op} {second}")
            pending.remove([name, expression])
    return known


def solve_story(sentences: list[str]) -> dict[str, int]:
    holding: dict[str, int] = {}
    for sentence in sentences:
        match sentence.split():
            case [who, "has", n]:
                holding[who] = int(n)
            case [who, "has", n, "more", "than", other]:
                holding[who] = (holding[other] + int(n)) % 10
            case [who, "has", n, "less", "than", other]:
                holding[who] = (holding[other] - int(n)) % 10
            case [who, "has", n, "times", other]:
                holding[who] = (holding[other] * int(n)) % 10
            case words:
                raise AssertionError(words)
    return holding


def solve_chain(prompt: str) -> str:
    *lines, asked = prompt.removesuffix(" ?").split(" ; ")
    return str(solve_assignments(lines, {})[asked])


def solve_blend(prompt: str) -> str:
    *sentences, rest = prompt.removesuffix(" ?").split(" . ")
    *lines, asked = rest.split(" ; ")
    return str(solve_assignments(lines, solve_story(sentences))[asked])


def solve_choice(prompt: str) -> str:
    body, options = prompt.removesuffix(" ?").split(" in ")
    *lines, asked = body.split(" ; ")
    value = solve_assignments(lines, {})[asked]
    words = options.split()
    return {int(v): letter for letter, v in zip(words[::2], words[1::2], strict=True)}[value]


def solve_told_story(prompt: str) -> str:
    *sentences, question = prompt.split(" . ")
    return str(solve_story(sentences)[question.removesuffix(" has ?")])


def solve_dot(prompt: str) -> str:
    left, right = re.fullmatch(r"dot \( ([\d ]+) \) \( ([\d ]+) \) \?", prompt).groups()
    return str(sum(int(a) * int(b) for a, b in zip(left.split(), right.split(), strict=True)) % 10)


def solve_poly(prompt: str) -> str:
    coefficients, x = re.fullmatch(r"poly ([\d ]+) at (\d) \?", prompt).groups()
    rising = enumerate(reversed(coefficients.split()))
    return str(sum(int(c) * int(x) ** n for n, c in rising) % 10)


def solve_total(prompt: str) -> str:
    return str(sum(map(int, prompt.removeprefix("sum ").removesuffix(" ?").split())) % 10)


def solve_machine(prompt: str) -> str:
    start, program = prompt.removesuffix(" ?").split(" : ")
    _, x, _, y = start.split()
    registers = {"x": int(x), "y": int(y)}
    *code, asked = program.split(" ; ")
    for line in code:
        target, op, source = line.split()
        operand = registers.get(source, source)
        registers[target] = evaluate(f"{registers[target]} {op} {operand}")
    return str(registers[asked])


SOLVERS = {
    "chain": solve_chain,
    "long": solve_chain,
    "story": solve_told_story,
    "dot": solve_dot,
    "poly": solve_poly,
    "total": solve_total,
    "machine": solve_machine,
    "blend": solve_blend,
    "choice": solve_choice,
}


def problems(family: str):
    return [make_problem(family, 7, i) for i in range(SAMPLES)]


def test_families_are_partitioned_into_in_and_out_of_distribution():
    assert sorted(IN_DISTRIBUTION + OUT_OF_DISTRIBUTION) == sorted(FAMILIES)
    assert len(IN_DISTRIBUTION) >= 5 and len(OUT_OF_DISTRIBUTION) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_agree_with_an_independent_solver(family):
    for problem in problems(family):
        assert SOLVERS[family](problem.prompt) == problem.answer, problem.prompt
        assert problem.trace.endswith(f" #### {problem.answer}")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_equation_in_a_trace_holds(family):
    equation = re.compile(r"(\d [-+*] \d) = (\d)")
    found = 0
    for problem in problems(family):
        for expression, result in equation.findall(problem.trace):
            assert evaluate(expression) == int(result), problem.trace
            found += 1
    assert found or family == "machine"  # its steps are checked below


def test_machine_steps_are_the_states_of_a_replay():
    for problem in problems("machine"):
        start, program = problem.prompt.split(" : ")
        done: list[str] = []
        for step, line in zip(problem.steps, program.split(" ; ")[:-1], strict=True):
            instruction, state = step.split(" : ")
            assert instruction == line
            done.append(line)
            x, y = (solve_machine(f"{start} : {' ; '.join(done)} ; {r} ?") for r in "xy")
            assert state == f"{x} {y}"


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_chain_up_to_the_answer(family):
    for problem in problems(family):
        assert problem.depth in FAMILIES[family].depths
        assert problem.answer in problem.steps[-1].split()[-2:]


def test_a_problem_is_the_same_under_any_hash_seed():
    code = (
        "from srft.lab import FAMILIES, make_problem\n"
        "print([make_problem(f, 3, i) for f in FAMILIES for i in range(3)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {str([make_problem(f, 3, i) for f in FAMILIES for i in range(3)]) + "\n"}


def test_indices_and_seeds_give_different_problems():
    prompts = {make_problem("chain", seed, i).prompt for seed in (0, 1) for i in range(100)}
    assert len(prompts) == 200


def test_training_and_evaluation_never_share_a_prompt():
    train = {row["prompt"] for row in lab_train(3000, seed=0)}
    held_out = [row["prompt"] for seed in (0, 1) for row in lab_eval(100, seed=seed)]
    assert len(train) == 3000, "training prompts repeat"
    assert not train & set(held_out)
    assert all(map(is_held_out, held_out)) and not any(map(is_held_out, train))


def test_a_smaller_training_set_is_a_prefix_of_a_larger_one():
    assert lab_train(40, seed=5) == lab_train(100, seed=5)[:40]
    assert lab_train(10, seed=5) != lab_train(10, seed=6)
    assert {row["family"] for row in lab_train(12)} == set(IN_DISTRIBUTION)


def test_evaluation_rows_are_distinct_and_grouped_by_family():
    rows = lab_eval(30, families=("dot", "long"))
    assert [row["family"] for row in rows] == ["dot"] * 30 + ["long"] * 30
    assert len({row["prompt"] for row in rows}) == 60
    assert set(rows[0]) == {"prompt", "demonstration", "answer", "family"}


def test_an_unknown_family_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'chian'.*chain"):
        lab_eval(1, families=("chian",))


def test_the_command_writes_the_rows_into_a_new_folder(tmp_path):
    out = tmp_path / "new" / "folder"
    options = ["--n", "12", "--per-family", "2", "--seed", "3"]
    assert CliRunner().invoke(app, ["lab", "data", str(out), *options]).exit_code == 0
    for name, rows in (("train", lab_train(12, 3)), ("eval", lab_eval(2, 3))):
        assert [json.loads(line) for line in (out / f"{name}.jsonl").open()] == rows


def test_the_hard_set_trains_beyond_the_corpus_and_keeps_a_family_back():
    hard = TASK_SETS["lab-hard"]
    assert not set(hard.inside) & set(hard.outside) and set(hard.families) <= set(FAMILIES)
    rows = lab_eval(20, tasks="lab-hard")
    assert [row["family"] for row in rows[::20]] == [*hard.inside, *hard.outside]
    assert all(is_held_out(row["prompt"]) for row in rows)
    train = lab_train(50, tasks="lab-hard")
    assert {row["family"] for row in train} == set(hard.inside)
    read = {f: max(FAMILIES[f].depths + FAMILIES[f].corpus_depths) for f in FAMILIES}
    deeper = {f for f, depths in hard.inside.items() if max(depths) > read[f]}
    assert deeper == {"story", "poly", "machine", "total"}
    with pytest.raises(ValueError, match="choice"):
        lab_eval(1, families=("choice",), tasks="lab-hard")


def test_an_expert_of_its_own_style_keeps_every_step():
    """benchmarks.lab.restyle: only words change, all of which the base model knows."""
    assert (
        restyle("v = 9 * 7 = 3 ; c = 3 * 7 = 1 #### 1")
        == "v is 9 * 7 is 3 . c is 3 * 7 is 1 #### 1"
    )
    vocabulary = AutoTokenizer.from_pretrained(base_model_path()).get_vocab()
    assert set(WORDS.values()) <= vocabulary.keys()
    for row in lab_train(40, tasks="lab-hard"):
        before, after = row["demonstration"].split(), restyle(row["demonstration"]).split()
        assert (
            len(before) == len(after)
            and after[-2:] == before[-2:]
            and not WORDS.keys() & set(after)
        )
