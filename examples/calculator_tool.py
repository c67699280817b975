"""A model that cannot multiply learns to ask a calculator: SRFT on demonstrations with calls of a tool.

python examples/calculator_tool.py SMOLLM2_135M_INSTRUCT        # a folder, or a hub id
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
You can use tools: {% for tool in tools %}{% set f = tool['function'] %}{{ f['name'] }}({{
f['parameters']['properties'] | join(', ') }}): {{ f['description'] }} {% endfor %}<|im_end|>
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


def main(model: str, steps: int = 16, held_out: int = 100, **sections: Any) -> TrainResult:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    settings: dict[str, Any] = {
        "reward": "math",
        "model": {"path": model, "autocast": "bfloat16"},
        "rollout": {"group_size": 4, "max_tokens": 96},
        "environment": {"max_turns": 3},
        "train": {
            "steps": steps,
            "prompts_per_step": 8,
            "learning_rate": 2e-5,
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
    before, after = (
        record["accuracy"] for record in (result.evaluations[0], result.evaluations[-1])
    )
    print(f"held-out accuracy: {before:.0%} before, {after:.0%} after {result.step} steps")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
