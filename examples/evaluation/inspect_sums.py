"""Inspect (0.3.285): problems.jsonl, one {"prompt": ..., "answer": ...} a line; scored by the last number."""

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import match
from inspect_ai.solver import generate


@task
def sums(problems: str = "problems.jsonl") -> Task:
    return Task(
        dataset=json_dataset(problems, FieldSpec(input="prompt", target="answer")),
        solver=generate(),
        scorer=match(location="end", numeric=True),
        config=GenerateConfig(temperature=0.0, max_tokens=48),
    )
