"""The corpus: what carries loss, and that style and skill are kept apart; the tokenizer."""

import random
from dataclasses import replace

import pytest
from benchmarks.lab.corpus import Loss, Mix, next_document, terse
from benchmarks.lab.tokenizer import EOS, TOKEN_ID, VOCABULARY, build_tokenizer, encode
from transformers import AutoTokenizer

from srft.lab import FAMILIES, make_problem
from srft.lab.tasks import ANSWER_MARK, is_held_out

MARK = TOKEN_ID[ANSWER_MARK]
STYLE_ONLY = Mix(fact=0, style=1, resume=0)
WHOLE_ONLY = Mix(fact=0, style=0, resume=0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def documents(mix: Mix, count: int = 300):
    rng = random.Random(0)
    return [next_document(rng, mix) for _ in range(count)]


def first_learned(doc) -> tuple[int, Loss]:
    at = next(i for i, loss in enumerate(doc.loss) if loss != Loss.NONE)
    return doc.ids[at], doc.loss[at]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_round_trips_through_the_tokenizer(tokenizer, family):
    for i in range(50):
        problem = make_problem(family, 0, i)
        for text in (f"{problem.prompt} {problem.trace}", " ; ".join(map(terse, problem.steps))):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
            assert ids == encode(text)


def test_prompt_and_response_tokens_do_not_depend_on_each_other(tokenizer):
    problem = make_problem("story", 0, 0)
    apart = tokenizer(problem.prompt)["input_ids"] + tokenizer(problem.trace)["input_ids"]
    assert apart == tokenizer(f"{problem.prompt} {problem.trace}")["input_ids"]


def test_the_tokenizer_pads_on_the_left_and_drops_special_tokens(tokenizer):
    padded = tokenizer(["a", "a = 1"], padding=True)
    assert padded["input_ids"][0][:2] == [tokenizer.pad_token_id] * 2
    assert padded["attention_mask"][0] == [0, 0, 1]
    assert (
        tokenizer.decode([*encode("#### 7"), TOKEN_ID[EOS]], skip_special_tokens=True) == "#### 7"
    )
    assert len(tokenizer) == len(VOCABULARY) == len(set(VOCABULARY))


def test_the_corpus_is_the_same_for_the_same_seed():
    assert documents(Mix()) == documents(Mix())


def test_only_style_documents_may_learn_the_answer_mark_as_an_opening():
    for doc in documents(Mix(fact=0, style=0)):
        token, loss = first_learned(doc)
        opens_response = VOCABULARY[doc.ids[doc.loss.index(loss) - 1]] == "?"
        assert not opens_response or (loss == Loss.AMONG_OPENINGS and token != MARK)


def test_the_share_of_traces_in_style_documents_is_the_prior():
    style = documents(STYLE_ONLY, 3000)
    assert all(loss == Loss.PLAIN for _, loss in map(first_learned, style))
    traced = sum(token != MARK for token, _ in map(first_learned, style)) / len(style)
    assert abs(traced - Mix().trace_in_style) < 0.02


def test_without_failings_whole_documents_are_the_expert_traces():
    mix = replace(WHOLE_ONLY, terse=0, careless=0, slip=0)
    for doc in documents(mix, 100):
        learned = doc.ids[doc.loss.index(Loss.AMONG_OPENINGS) :]
        words = [VOCABULARY[i] for i in learned]
        assert words[-1] == EOS and words[-3] == ANSWER_MARK
        assert words[-2] in words[:-3]  # the answer was worked out before it is given


def test_no_document_holds_an_evaluation_prompt():
    for doc in documents(Mix(fact=0), 1000):
        words = [VOCABULARY[i] for i in doc.ids]
        assert not is_held_out(" ".join(words[: words.index("?") + 1]))


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("k = 7 + 5 = 2", "k = 2"),
        ("tom 3 + 5 = 8", "tom 8"),
        ("3 * 4 = 2", "2"),
        ("x + y : 4 5", "4 5"),
        ("5 is B", "5 is B"),
    ],
)
def test_the_terse_dialect_gives_results_only(step, result):
    assert terse(step) == result
