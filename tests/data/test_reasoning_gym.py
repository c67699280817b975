"""reasoning-gym as a source: its rows, its scorers, worked solutions, and what is refused."""

import json
from fractions import Fraction

import pytest

gym = pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

from srft.data.reading import _named, load_examples  # noqa: E402
from srft.data.reasoning_gym import rows_of, worked_solution  # noqa: E402
from srft.errors import DataError  # noqa: E402
from srft.rewards.gym import check_gym  # noqa: E402

FAMILIES = ("chain_sum", "products", "basic_arithmetic", "decimal_chain_sum", "gsm_symbolic",
            "leg_counting", "simple_equations", "spell_backward", "count_primes")  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_reasoning_gym_s_own_and_their_answers_score_one(family):
    rows = rows_of(f"reasoning-gym:{family}?size=25&seed=3")
    peer = gym.create_dataset(family, size=25, seed=3)
    assert [row["prompt"] for row in rows] == [peer[i]["question"] for i in range(25)]
    for row in rows:
        assert row["family"] == family
        assert check_gym(f"So it is \\boxed{{{row['answer']}}}.", None, row, {}).score == 1.0
        assert check_gym("The answer is nothing at all.", None, row, {}).score < 0.5


@pytest.mark.parametrize("family", ["chain_sum", "products", "basic_arithmetic"])
def test_a_worked_solution_ends_in_the_answer_and_every_step_is_true(family):
    rows = rows_of(f"reasoning-gym:{family}?size=200&seed=5")
    worked = [row for row in rows if "demonstration" in row]
    assert len(worked) > 150
    for row in worked:
        text = row["demonstration"]
        assert text.endswith(f"The answer is {row['answer']}.")
        for step in text.removeprefix("First, ").split(". The answer")[0].split(", then "):
            left, right = step.split(" = ")
            a, sign, b = left.split(" ")
            values = {"+": Fraction(a) + Fraction(b), "-": Fraction(a) - Fraction(b),
                      "*": Fraction(a) * Fraction(b),
                      "/": Fraction(a) / Fraction(b) if Fraction(b) else None}  # fmt: skip
            assert values[sign] == Fraction(right)


def test_the_worked_solution_of_the_docstring():
    entry = {"answer": "127", "metadata": {"expression": "90 + 66 - 29"}}
    assert worked_solution(entry) == "First, 90 + 66 = 156, then 156 - 29 = 127. The answer is 127."
    # An expression that does not lead to the answer is no solution.
    assert worked_solution({"answer": "5", "metadata": {"expression": "1 + 1"}}) is None


def test_several_families_with_weights_and_settings_of_their_own():
    source = "reasoning-gym:chain_sum*3+products?size=200&seed=1&products.max_digits=1&max_terms=3"
    rows = rows_of(source)
    families = [row["family"] for row in rows]
    assert 0.6 < families.count("chain_sum") / 200 < 0.9
    for row in rows:
        numbers = json.loads(row["reasoning_gym"])["metadata"]["expression"].split(" ")[::2]
        assert len(numbers) <= 3
        if row["family"] == "products":
            assert all(len(n.lstrip("-")) == 1 for n in numbers)


def test_the_source_reads_as_examples_and_names_its_evaluation_set():
    source = "reasoning-gym:chain_sum?seed=2&min_terms=2"
    examples = load_examples(source, limit=7)
    assert len(examples) == 7 and examples[0].demonstrations
    assert examples[0].columns["family"] == "chain_sum"
    assert list(_named(source)) == ["chain_sum"]
    assert load_examples(source, limit=3) == examples[:3]
    unseeded = "reasoning-gym:chain_sum?min_terms=2"
    assert load_examples(unseeded, limit=7, seed=2) == load_examples(unseeded, limit=7, seed=2)
    assert load_examples(unseeded, limit=7, seed=2) != load_examples(unseeded, limit=7, seed=3)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("chain_sums", "no family 'chain_sums'; did you mean 'chain_sum'"),
        ("composite", "no family 'composite'"),
        ("chain_sum?max_term=3", "no setting 'max_term'; did you mean 'max_terms'"),
        ("chain_sum?size=0", "size must be a whole number, not '0'"),
        ("chain_sum?seed=x", "seed must be a whole number, not 'x'"),
        ("chain_sum?min_terms=5&max_terms=2", "refuses its settings"),
        ("chain_sum?products.max_digits=1", "'products', which is not requested"),
        ("chain_sum*x+products", "the weight 'x' of chain_sum is not a number"),
        ("chain_sum?size", "cannot read 'size'"),
    ],
)
def test_what_is_refused_is_named(source, words):
    with pytest.raises(DataError, match=words):
        rows_of(f"reasoning-gym:{source}")
