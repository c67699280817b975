"""A model that cannot multiply learns to ask a calculator: SFT, then SRFT, on demonstrations with calls.

python examples/calculator_tool.py SMOLLM2_135M_INSTRUCT        # a folder, or a hub id

SmolLM2-135M-Instruct, 10 and 3 steps, 100 held-out problems: 0 % (0 to 4) before, 99 % (95 to 100) after.
docs/environments.md says how long it takes and what did not work.
"""

from __future__ import annotations

import ast
import operator
import random
import sys
from typing import Any

from transformers import AutoTokenizer

from srft import SRFTConfig, SRFTTrainer
from srft.trainer.state import TrainResult

# SmolLM2's own chat template knows no tools: this one is ChatML with calls as Hermes and Qwen write them.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
You can call tools: {% for tool in tools %}{% set f = tool['function'] %}{{ f['name'] }}({{
f['parameters']['properties'] | join(', ') }}): {{ f['description'] }} {% endfor %}
A call is written as <tool_call>
{"name": NAME, "arguments": {...}}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] or '' }}
{%- for call in message['tool_calls'] or [] %}<tool_call>
{{ call['function'] | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """
    Works out an arithmetic expression.

    Args:
        expression: Whole numbers with +, - and *.
    """

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.operand))
        raise ValueError("only whole numbers, +, - and *")

    # What is raised here is told to the model.
    return str(value(ast.parse(expression, mode="eval").body))


def problems(count: int, seed: int) -> list[dict[str, Any]]:
    """Sums with a product, in words; each with a demonstration that asks the calculator."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        a, b, c = draw.randint(12, 99), draw.randint(12, 99), draw.randint(100, 999)
        asked, expression = draw.choice(
            [
                (f"What is {a} times {b}, plus {c}?", f"{a} * {b} + {c}"),
                (
                    f"A box holds {a} eggs. How many are in {b} boxes and {c} more?",
                    f"{b} * {a} + {c}",
                ),
                (f"Take {c} from the product of {a} and {b}. What is left?", f"{a} * {b} - {c}"),
            ]
        )
        answer = calculate(expression)
        call = {"name": "calculate", "arguments": {"expression": expression}}
        rows.append(
            {
                "prompt": [{"role": "user", "content": asked}],
                "demonstration": [
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [{"type": "function", "function": call}],
                    },
                    {"role": "tool", "name": "calculate", "content": answer},
                    {"role": "assistant", "content": f"The answer is {answer}."},
                ],
                "answer": answer,
            }
        )
    return rows


def main(
    model: str, steps: tuple[int, int] = (10, 3), held_out: int = 100, **sections: Any
) -> TrainResult:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    settings: dict[str, Any] = {
        # Not "math", for which `29 * 84 + 967` is as right as its value: that the policy would learn to say.
        "reward": "numeric",
        "model": {"path": model},
        "stages": [
            {"method": "sft", "steps": steps[0]},
            {"method": "srft", "steps": steps[1]},
        ],
        "rollout": {"group_size": 4, "max_tokens": 96},
        "environment": {"max_turns": 3},
        "train": {
            "prompts_per_step": 8,
            "learning_rate": 1e-4,
            "warmup_steps": 2,
            "tokens_per_micro_batch": 2048,
        },
        "evaluation": {"at_start": True},
    }
    trainer = SRFTTrainer(
        args=SRFTConfig(**settings | sections),
        train_dataset=problems(200, seed=1),
        eval_dataset=problems(held_out, seed=2),
        processing_class=tokenizer,
        tools=[calculate],
    )
    result = trainer.train()
    for record in result.evaluations:
        low, high = record["interval"]
        print(
            f"held-out accuracy after {record['step']} steps: {record['accuracy']:.0%} "
            f"({low:.0%} to {high:.0%})"
        )
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
