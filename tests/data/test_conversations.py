"""What is learned after a prompt, compared with apply_chat_template on the whole conversation."""

from __future__ import annotations

import json
import random

import pytest
from tests.data.chat_templates import real_tokenizer, template_text, with_template
from tests.data.conftest import render_prompt

from srft.data.data_config import DataConfig
from srft.data.reading import as_examples
from srft.data.template import tokenize_prompt
from srft.data.tokenization import TokenizationReport, tokenize_dataset
from srft.errors import ConfigError, DataError
from srft.types import TokenizedExample

AUTO = DataConfig(max_prompt_tokens=None)
USER = {"role": "user", "content": "What is 2+2?"}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
REPLIES = {
    "plain": {"content": "It is \\boxed{4}."},
    "think": {"content": "<think>\nTwo and two.\n</think>\n\nIt is \\boxed{4}."},
    "reasoning_content": {"reasoning_content": "Two and two.", "content": "It is 4."},
    "tool_calls": {"content": "", "tool_calls": [CALL]},
}
# With which model which demonstration is learned: `equal` token for token as in the whole conversation,
# `refused`, or with a difference that is named.
TABLE = {
    "qwen2_5": ("equal", "equal", "refused", "equal"),
    "qwen3": ("equal", "equal", "equal", "equal"),
    "qwen3_instruct_2507": ("equal", "equal", "refused", "equal"),
    "qwen3_5_think": ("equal", "equal", "equal", "equal"),
    "qwen3_5_nothink": ("equal", "two blocks are learned", "refused", "equal"),
    "qwen3_6": ("equal", "equal", "equal", "equal"),
    "llama3": ("equal", "equal", "refused", "refused"),
    "llama3_1": ("equal", "equal", "refused", "equal"),
    "llama3_2": ("equal", "equal", "refused", "equal"),
    "gemma": ("equal", "equal", "refused", "refused"),
    "gemma3": ("equal", "equal", "refused", "refused"),
    "gptoss": ("equal", "equal", "equal", "equal"),
    "glm4moe": ("no end token", "no end token", "no end token", "no end token"),
    "phi3": ("equal", "equal", "refused", "refused"),
    "phi3_5": ("equal", "equal", "refused", "refused"),
    "deepseekv3": ("learned as thinking", "leaves out", "refused", "refused"),
    "deepseek_r1_distill": ("learned as thinking", "leaves out", "refused", "refused"),
    "nemotron_3_nano": ("different white space", "equal", "equal", "different white space"),
    "nemotron_3_super": ("different white space", "equal", "equal", "different white space"),
    "lfm2_2_5": ("equal", "equal", "equal", "equal"),
}
CASES = [
    (name, kind, expected)
    for name, row in TABLE.items()
    for kind, expected in zip(REPLIES, row, strict=True)
]


def learned(
    tokenizer, *conversations, config=AUTO, **columns
) -> tuple[list[TokenizedExample], TokenizationReport]:
    rows = [{"messages": messages, **columns} for messages in conversations]
    return tokenize_dataset(as_examples(rows), tokenizer, config)


def official(tokenizer, messages, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def ids_of(item: TokenizedExample) -> list[int]:
    return [*item.prompt_ids, *item.demonstration_ids[0]]


@pytest.mark.parametrize(("name", "kind", "expected"), CASES)
def test_what_is_learned_is_what_the_template_writes_or_is_said(name, kind, expected):
    tokenizer = with_template(name)
    messages = [USER, {"role": "assistant", **REPLIES[kind]}]
    if expected == "refused":
        with pytest.raises(DataError, match=r"row 1: .*(chat template|thinking or tool calls)"):
            learned(tokenizer, messages)
        return
    (item,), report = learned(tokenizer, messages)
    whole = official(tokenizer, messages)
    said = "\n".join(report.differences.lines())
    assert "1 demonstrations, " in said and ("1 equal" in said) == (expected == "equal")
    if expected == "equal":
        assert whole[: len(ids_of(item))] == ids_of(item)
        rest = tokenizer.decode(whole[len(ids_of(item)) :])
        assert rest.strip() in ("", "<|endoftext|>")
    else:
        assert expected in said and "row 1: " in said
    if expected == "no end token":
        assert ids_of(item) == [*whole, tokenizer.eos_token_id]
    # The end is one at which sampling stops, and a verifier reads no control token.
    assert item.demonstration_ids[0][-1] in tokenizer.added_tokens_decoder
    assert "<|" not in item.example.demonstrations[0]


def test_thinking_of_any_name_reaches_the_template_that_reads_another():
    reply = {"role": "assistant", "thinking": "Two.", "content": "4"}
    expected = official(with_template("gptoss"), [USER, reply])
    for name in ("thinking", "reasoning_content", "reasoning"):
        reply = {"role": "assistant", name: "Two.", "content": "4"}
        (item,), _ = learned(with_template("gptoss"), [USER, reply])
        assert ids_of(item) == expected
    # ... also where nulls stand beside it, as in columns of merged schemas.
    reply |= {"thinking": None, "tool_calls": None, "reasoning_content": None}
    (item,), _ = learned(with_template("gptoss"), [USER, reply])
    assert ids_of(item) == expected


PARTS = ("\n", " ", "\t", "4", "The answer is", " \\boxed{4}", "\n\n", "é", "日本", "  ", "#", "```",
         "| a |", "<b>", "¿", "🙂", "0.5", "\r\n", "$x^2$", "User:", "<th", "ink>")  # fmt: skip


def random_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    texts = []
    while len(texts) < count:
        text = "".join(draw.choices(PARTS, k=draw.randint(1, 8)))
        if text.strip():
            texts.append(text)
    return texts


def check_family(tokenizer, count: int) -> None:
    """Over generated texts: equal token for token, or said to be a token across the boundary."""
    texts = iter(random_texts(2 * count, 7))
    rows = [
        [{"role": "user", "content": next(texts)}, {"role": "assistant", "content": next(texts)}]
        for _ in range(count)
    ]
    kept, report = learned(tokenizer, *rows)
    differ = 0
    for item, messages in zip(kept, rows, strict=True):
        prompt = official(tokenizer, messages[:1], add_generation_prompt=True)
        whole = official(tokenizer, messages)
        assert list(item.prompt_ids) == prompt
        if whole[: len(prompt)] == prompt:
            assert whole[: len(ids_of(item))] == ids_of(item)
        else:
            differ += 1
            assert tokenizer.decode(whole).startswith(tokenizer.decode(ids_of(item)))
    assert f"{count:,} demonstrations, {count - differ:,} equal" in report.differences.lines()[0]


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_5_think", "llama3_2", "gemma3", "gptoss", "phi3_5"]
)
def test_a_family_of_texts_is_learned_token_for_token(name, kind):
    check_family(with_template(name, kind), 60)


@pytest.mark.parametrize(
    "name",
    ["qwen2_5", "qwen3", "llama3_1", "llama3_2", "gemma3", "deepseek_v3", "gptoss", "mistral_nemo"],
)
def test_a_family_of_texts_is_learned_token_for_token_with_real_tokenizers(name):
    tokenizer = real_tokenizer(name)
    if not tokenizer.chat_template:
        tokenizer.chat_template = template_text(name)
    check_family(tokenizer, 200)


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_no_mark_of_a_beginning_stands_in_the_middle_of_a_conversation(make_tokenizer, scheme):
    from tokenizers import pre_tokenizers

    tokenizer = make_tokenizer.__wrapped__("metaspace", "chatml")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    messages = [USER, {"role": "assistant", "content": "The answer is \\boxed{4}."}]
    (item,), report = learned(tokenizer, messages)
    whole = official(tokenizer, messages)
    assert ids_of(item) == whole[: len(ids_of(item))]
    assert tokenizer.convert_ids_to_tokens(item.demonstration_ids[0][0])[0] != "\u2581"
    assert "1 equal" in report.differences.lines()[0]
    assert tokenizer("The", add_special_tokens=False).input_ids[0] != item.demonstration_ids[0][0]


def test_prefill_is_gone_on_with_as_transformers_does():
    tokenizer = with_template("llama3_2")
    prompt = [USER, {"role": "assistant", "content": "Let me see: 2+2"}]
    ids = tokenize_prompt(as_examples([{"prompt": prompt}])[0], tokenizer, AUTO)
    expected = official(tokenizer, prompt, continue_final_message=True)
    assert list(ids) == expected
    rows = [{"prompt": prompt, "demonstration": " is \\boxed{4}."}]
    notes: list[str] = []
    (item,), _ = tokenize_dataset(as_examples(rows, notes=notes), tokenizer, AUTO)
    whole = [USER, {"role": "assistant", "content": "Let me see: 2+2 is \\boxed{4}."}]
    assert official(tokenizer, whole)[: len(ids_of(item))] == ids_of(item)
    assert any("end with a message of the assistant" in note for note in notes)
    plain = DataConfig(chat_template="none")
    text = render_prompt(as_examples([{"prompt": prompt}])[0], tokenizer, plain)
    assert text == "User: What is 2+2?\n\nAssistant:\nLet me see: 2+2"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "gptoss", "llama3_1", "glm4moe"])
def test_tools_and_their_answers_are_written_as_the_template_does(name):
    tokenizer = with_template(name)
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    (item,), _ = learned(tokenizer, messages, tools=[TOOL])
    whole = official(tokenizer, messages, tools=[TOOL])
    shared = len(ids_of(item)) - (name == "glm4moe")
    assert ids_of(item)[:shared] == whole[:shared]
    assert "add" in tokenizer.decode(item.prompt_ids)
    prompt = official(tokenizer, messages[:-1], tools=[TOOL], add_generation_prompt=True)
    assert list(item.prompt_ids) == prompt


@pytest.mark.parametrize("config", [AUTO, DataConfig(chat_template="none")])
def test_tools_that_would_be_left_out_are_refused(config):
    with pytest.raises(DataError, match=r"row 1: .*tools"):
        learned(with_template("gemma3"), [USER, {"role": "assistant", "content": "4"}],
                config=config, tools=[TOOL])  # fmt: skip
    # A column of that name that declares no functions is a column like any other.
    (item,), _ = learned(with_template("gemma3"), [USER, {"role": "assistant", "content": "4"}],
                         config=config, tools="hammer")  # fmt: skip
    assert item.example.columns == {"tools": "hammer"}


LONG = {"description": "Adds. " * 60, **TOOL["function"]}  # its name comes late
AS_WRITTEN = {
    "a list": [TOOL], "a tuple": (TOOL,), "one": TOOL, "without a type": [LONG], "two": [TOOL, LONG],
}  # fmt: skip


@pytest.mark.parametrize("kind", AS_WRITTEN)
def test_tools_are_read_however_they_are_written(kind):
    tokenizer = with_template("qwen3")
    tools = AS_WRITTEN[kind]
    listed = [tools] if isinstance(tools, dict) else [*tools]
    messages = [USER, {"role": "assistant", "content": "4"}]
    expected = official(tokenizer, [USER], tools=listed, add_generation_prompt=True)
    for written in (
        tools, json.dumps(tools), json.dumps(tools, indent=2), repr(listed),
        [json.dumps(tool) for tool in listed], json.dumps([json.dumps(tool) for tool in listed]),
    ):  # fmt: skip
        notes: list[str] = []
        rows = [{"messages": messages, "tools": None}, {"messages": messages, "tools": written}]
        read = as_examples(rows, notes=notes)
        _, item = tokenize_dataset(read, tokenizer, AUTO)[0]
        assert list(item.prompt_ids) == expected
        assert "`tools`: functions for the chat template" in notes[0] and "only" not in notes[0]
        assert item.example.columns == {"tools": written}


@pytest.mark.parametrize(
    "tools",
    ["hammer", ["hammer", "saw"], "[hammer, saw]", '["hammer"]', {"hammer": 3}, 5, [], "", [[TOOL]],
     [{"tool": "hammer"}], '{"size": 3}', [{"name": "hammer"}, "saw"], "{3}"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_a_column_called_tools_may_be_something_else(tools, name):
    notes: list[str] = []
    row = {"messages": [USER, {"role": "assistant", "content": "4"}], "tools": tools, "id": 1}
    read = as_examples([row], notes=notes)
    (item,), _ = tokenize_dataset(read, with_template(name), AUTO)
    assert item.example.columns == {"tools": tools, "id": 1}
    assert "for rewards only: `tools`, `id`" in notes[0]
    prompt = official(with_template(name), [USER], add_generation_prompt=True)
    assert list(item.prompt_ids) == prompt


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (json.dumps([TOOL])[:-3], "`tools` declares functions, but is not JSON"),
        ([json.dumps(TOOL), json.dumps(TOOL)[1:]], "`tools`: number 2 of 2 declares no function"),
        ([TOOL, {"size": 3}], "`tools`: number 2 of 2 declares no function"),
        ([json.dumps(TOOL), json.dumps(TOOL)[:-3]], "`tools` declares functions, but is not JSON"),
    ],
)
def test_tools_that_cannot_be_read_are_refused_row_by_row(tools, words):
    messages = [USER, {"role": "assistant", "content": "4"}]
    rows = [{"messages": messages, "tools": given} for given in (tools, [TOOL])]
    with pytest.raises(DataError, match=f"1 of 2 rows .*\n  row 1: {words}"):
        tokenize_dataset(as_examples(rows), with_template("qwen3"), AUTO)
    drop = DataConfig(max_prompt_tokens=None, invalid_rows="drop")
    kept, _ = tokenize_dataset(as_examples(rows), with_template("qwen3"), drop)
    assert [item.example.source for item in kept] == ["row 2"]


CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOLD = {"role": "tool", "name": "add", "content": "4"}
FOUR = {"role": "assistant", "content": "4"}


def calling(arguments) -> dict:
    return {**CALL, "function": {"name": "add", "arguments": arguments}}


HALF = "x\ud83d"


@pytest.mark.parametrize("bad", [HALF, "x\0"], ids=["half", "null"])
@pytest.mark.parametrize(
    "damaged",
    [
        lambda bad: {"tools": [{**TOOL, "function": {**TOOL["function"], "description": bad}}]},
        lambda bad: {"tools": json.dumps([{**TOOL, "function": {"name": bad}}])},
        lambda bad: {"messages": [USER, {**CALLED, "tool_calls": [calling({"a": bad})]}]},
        lambda bad: {"messages": [USER, {**CALLED, "tool_calls": [calling({bad: 2})]}]},
        lambda bad: {
            "messages": [USER, {**CALLED, "tool_calls": [calling(json.dumps({"a": [bad]}))]}]
        },
        lambda bad: {"messages": [USER, CALLED, {**TOLD, "name": bad}, FOUR]},
        lambda bad: {"messages": [USER, CALLED, {**TOLD, "content": bad}, FOUR]},
        lambda bad: {"messages": [USER, CALLED, TOLD, {**FOUR, bad: "y"}]},
        lambda bad: {"messages": [{**USER, "note": {"of": bad}}, FOUR]},
    ],
)
def test_a_damaged_text_anywhere_is_a_problem_of_its_row(damaged, bad):
    good = {"messages": [USER, CALLED, TOLD, FOUR], "tools": [TOOL]}
    rows = [{**good, **damaged(bad)}, good]
    drop = DataConfig(max_prompt_tokens=None, invalid_rows="drop")
    for name in ("qwen2_5", "glm4moe"):
        read = as_examples(rows, invalid_rows="drop")
        kept, _ = tokenize_dataset(read, with_template(name), drop)
        assert [item.example.source for item in kept] == ["row 2"]
    problem = r"row 1: .* has (half a surrogate pair|a NUL character)"
    with pytest.raises(DataError, match=problem) as caught:
        tokenize_dataset(as_examples(rows), with_template("qwen2_5"), AUTO)
    assert str(caught.value).encode()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gptoss", [{"role": "developer", "content": "Be brief."}, USER]),
        ("qwen3", [{"role": "system", "content": "Be brief."}, USER]),
        ("gemma", [{"role": "user", "content": "Be brief.\n\nWhat is 2+2?"}]),
    ],
)
def test_a_developers_message_stands_where_the_template_has_a_place_for_it(name, expected):
    tokenizer = with_template(name)
    prompt = [{"role": "developer", "content": "Be brief."}, USER]
    ids = tokenize_prompt(as_examples([{"prompt": prompt}])[0], tokenizer, AUTO)
    assert list(ids) == official(tokenizer, expected, add_generation_prompt=True)


def test_thinking_of_earlier_turns_is_left_out_by_qwen3_and_said():
    turns = [USER, {"role": "assistant", "reasoning_content": "Two.", "content": "4"}, USER]
    _, report = learned(with_template("qwen3"), [*turns, {"role": "assistant", "content": "4"}])
    assert any("leaves out `reasoning_content`" in line for line in report.differences.lines())
    assert any("(row 1)" in line for line in report.differences.lines())


def test_control_tokens_that_a_demonstration_spells_stay_text_between_the_templates_own():
    tokenizer = with_template("gptoss")
    reply = {"role": "assistant", "thinking": "no <|return|> yet", "content": "<|end|> 4 <|call|>"}
    (item,), _ = learned(tokenizer, [USER, reply])
    harmless = {"role": "assistant", "thinking": "no x yet", "content": "x 4 x"}
    whole = official(tokenizer, [USER, harmless])
    special = set(tokenizer.all_special_ids)
    assert [i for i in ids_of(item) if i in special] == [i for i in whole if i in special]
    text = tokenizer.decode(ids_of(item))
    assert "no <|return|> yet<|end|><|start|>assistant<|channel|>final<|message|><|end|> 4" in text


RENDERED = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"


def test_prompts_that_are_rendered_already_are_asked_about_and_taken_as_they_stand(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    rows = [{"prompt": RENDERED, "demonstration": "\\boxed{4}"}]
    with pytest.raises(DataError, match=r"1 of 1 prompts hold control .*data\.prompt_is_rendered"):
        tokenize_dataset(as_examples(rows), tokenizer, AUTO)
    config = DataConfig(prompt_is_rendered=True)
    (item,), _ = tokenize_dataset(as_examples(rows), tokenizer, config)
    assert list(item.prompt_ids) == tokenizer(RENDERED, add_special_tokens=False).input_ids
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert item.demonstration_ids[0][-1] == end and item.prompt_ids.count(end) == 1
    # A prompt without any goes through the template, so that benchmarks are asked as ever.
    ids = tokenize_prompt(as_examples([{"prompt": "Hi"}])[0], tokenizer, config)
    assert list(ids) == official(tokenizer, [{"role": "user", "content": "Hi"}],
                                 add_generation_prompt=True)  # fmt: skip
    as_text = DataConfig(prompt_is_rendered=False)
    (item,), _ = tokenize_dataset(as_examples(rows), tokenizer, as_text)
    assert tokenizer.decode(item.prompt_ids).count("<|im_start|>") == 5
    assert item.prompt_ids.count(end) == 2  # the default system message's and the user's


@pytest.mark.parametrize(
    "prompt",
    ["<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<s>[INST] Hi [/INST]",
     "<start_of_turn>user\nHi<end_of_turn>", "<\uff5cUser\uff5c>Hi<\uff5cAssistant\uff5c>"],
)  # fmt: skip
def test_prompts_rendered_for_another_model_are_noticed_too(make_tokenizer, prompt):
    tokenizer = make_tokenizer("words")
    with pytest.raises(DataError, match=r"prompt_is_rendered"):
        tokenize_dataset(as_examples([{"prompt": prompt}]), tokenizer, AUTO)


def test_a_few_prompts_with_control_tokens_among_many_are_text(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    rows = [{"prompt": "What does <|im_end|> mean?"}, {"prompt": "And 2?"}, {"prompt": "And 3?"}]
    kept, report = tokenize_dataset(as_examples(rows), tokenizer, AUTO)
    assert len(kept) == 3 and report.spelled_controls == 1


def test_several_templates_without_a_default_are_an_error_that_names_them(make_tokenizer):
    tokenizer = make_tokenizer.__wrapped__("bytes", "chatml")
    chatml = tokenizer.chat_template
    tokenizer.chat_template = {"rag": chatml, "tool_use": chatml}
    example = as_examples([{"prompt": "Hi"}])[0]
    with pytest.raises(ConfigError, match=r"data\.chat_template: .*\(rag, tool_use\)"):
        tokenize_prompt(example, tokenizer, AUTO)
    expected = official(make_tokenizer("bytes", "chatml"), [{"role": "user", "content": "Hi"}],
                        add_generation_prompt=True)  # fmt: skip
    tokenizer.chat_template = {"only": chatml}
    assert list(tokenize_prompt(example, tokenizer, AUTO)) == expected
    tokenizer.chat_template = {"tool_use": "{{ 1 }}", "default": chatml}
    assert list(tokenize_prompt(example, tokenizer, AUTO)) == expected


@pytest.mark.parametrize("more", [{"thinking": "Two."}, {"tool_calls": [CALL]}])
@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (DataConfig(chat_template="none"), [USER]),
        (DataConfig(prompt_is_rendered=True), RENDERED),
    ],
)
def test_without_a_template_thinking_and_tool_calls_are_refused(
    make_tokenizer, more, config, asked
):
    reply = {"role": "assistant", "content": "4", **more}
    row = {"prompt": asked, "demonstration": [reply]}
    with pytest.raises(DataError, match="row 1: has thinking or tool calls"):
        tokenize_dataset(as_examples([row]), make_tokenizer("bytes", "chatml"), config)


def assistant(content, *calls, **more):
    return {
        "role": "assistant",
        "content": content,
        **({"tool_calls": [*calls]} if calls else {}),
        **more,
    }


ALIKE = {  # rows whose messages have the same roles and keys
    "calls": [[USER, assistant("", CALL)], [USER, assistant("", CALL, CALL)], [USER, assistant("", CALL)]],
    "words": [
        [USER, assistant("", CALL)],
        [USER, assistant("Let me look.", CALL)],
        [USER, assistant("", CALL)],
    ],
    "thought": [
        [USER, assistant("4", reasoning_content="")],
        [USER, assistant("4", reasoning_content="Two and two.")],
    ],
    "earlier": [
        [USER, assistant("", *calls), {"role": "tool", "name": "add", "content": "4"}, assistant("4")]
        for calls in ((CALL,), (CALL, CALL))
    ],
}  # fmt: skip


for number, bad in enumerate(('{"a": 1', "[1]", '"null"', [1], 5, '{"a": 3}', None)):
    ALIKE[f"arguments {number}"] = [
        [USER, assistant("", calling(given))] for given in (bad, {"a": 1}, '{"a": 2}')
    ]
    ALIKE[f"earlier arguments {number}"] = [
        [USER, assistant(None, calling(given)), {"role": "tool", "content": "4"}, assistant("4")]
        for given in (bad, {"a": 1}, '{"a": 2}')
    ]


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize(
    "name",
    ["llama3_1", "llama3_2", "gptoss", "qwen3", "qwen2_5", "glm4moe", "qwen3_5_nothink", "lfm2_2_5",
     "deepseekv3"],
)  # fmt: skip
def test_no_row_decides_for_another(name, kind):
    """Together, in either order, each row becomes what it becomes alone."""
    drop = DataConfig(max_prompt_tokens=None, invalid_rows="drop")
    offered = {} if name == "deepseekv3" else {"tools": [TOOL]}

    def tokens(*rows):
        try:
            kept, _ = learned(with_template(name), *rows, config=drop, **offered)
        except DataError:
            return []
        return [ids_of(item) for item in kept if item.demonstration_ids]

    rows = ALIKE[kind]
    alone = [found for row in rows for found in tokens(row)]
    assert tokens(*rows) == alone
    assert tokens(*rows[::-1]) == alone[::-1]
