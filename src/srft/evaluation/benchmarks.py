"""The benchmarks: where each one's problems are, how they are asked, verified and averaged.

Declarations only; `problems.py` loads them. A local file under the data folder is used where there
is one, the hub otherwise. The protocol is the paper's: temperature 0.6, at most 8,192 new tokens,
avg@32 for AIME and AMC, pass@1 for the others, options of multiple-choice questions shuffled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from srft.errors import ConfigError, did_you_mean
from srft.lab.tasks import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION

Layout = Literal["plain", "answer_list", "letters", "gpqa", "mmlu_pro", "arc"]
"""How a row holds its question. plain: as text or messages. answer_list: the same, with a list of
answers in the column final_answer. letters: with the options as lines ``A) ...`` at the end of the
last message. gpqa, mmlu_pro, arc: with the options in the columns of that data set."""


@dataclass(frozen=True)
class Benchmark:
    """One set of problems.

    title: the table's column head. size: how many problems the whole set has, so that a part is
    never taken for the whole. file: path under the data folder, whatever its ending, with rows in the
    RL community's schema or a copy of the hub's; "" for none.
    hub: repository id on the hub, hub_config and split say which part, columns maps our names
    (prompt, answer) to its. layout: see ``Layout``, of the hub's rows. subject: column
    with the field a problem is from, "" for none. verifier: name of the reward that judges an answer.
    n: samples of each problem; above 1 the score is avg@n. families: of the lab, which is generated
    and not loaded.
    """

    name: str
    title: str
    size: int
    verifier: Literal["math", "choice", "exact"] = "math"
    file: str = ""
    hub: str = ""
    hub_config: str | None = None
    split: str = "test"
    columns: Mapping[str, str] = field(default_factory=dict)
    layout: Layout = "plain"
    subject: str = ""
    n: int = 1
    temperature: float = 0.6
    max_tokens: int = 8192
    families: tuple[str, ...] = ()


LAB_PER_FAMILY = 100
_PROBLEM = {"prompt": "problem", "answer": "answer"}
_QUESTION = {"prompt": "question", "answer": "answer"}
_LISTED = (
    Benchmark("aime24", "AIME24", 30, file="benchmarks/aime24.parquet", n=32,
              hub="HuggingFaceH4/aime_2024", split="train", columns=_PROBLEM),
    Benchmark("aime25", "AIME25", 30, file="benchmarks/aime25.parquet", n=32,
              hub="math-ai/aime25", columns=_PROBLEM),
    Benchmark("amc", "AMC", 83, file="benchmarks/amc.parquet", n=32,
              hub="AI-MO/aimo-validation-amc", split="train", columns=_PROBLEM),
    Benchmark("math500", "MATH500", 500, file="benchmarks/math500.parquet",
              hub="HuggingFaceH4/MATH-500", columns=_PROBLEM, subject="subject"),
    Benchmark("minerva", "Minerva", 272, file="benchmarks/minerva.parquet",
              hub="math-ai/minervamath", columns=_QUESTION),
    # One row more than the hub's, which has 674.
    Benchmark("olympiad", "Olympiad", 675, file="benchmarks/olympiad.parquet",
              hub="Hothan/OlympiadBench", hub_config="OE_TO_maths_en_COMP", split="train",
              columns={"prompt": "question"}, layout="answer_list", subject="subfield"),
    Benchmark("gsm8k", "GSM8K", 1319, file="gsm8k/test.jsonl", hub="openai/gsm8k", hub_config="main"),
    Benchmark("arc_c", "ARC-C", 1172, "choice", file="benchmarks/arc_c.parquet",
              hub="allenai/ai2_arc", hub_config="ARC-Challenge",
              columns={"prompt": "question", "answer": "answerKey"}, layout="arc"),
    # Gated: needs an account that has accepted its terms.
    Benchmark("gpqa_diamond", "GPQA-D", 198, "choice", file="benchmarks/gpqa_diamond.parquet",
              hub="Idavidrein/gpqa", hub_config="gpqa_diamond", split="train", layout="gpqa",
              columns={"prompt": "Question", "answer": "Correct Answer"}, subject="High-level domain"),
    Benchmark("mmlu_pro", "MMLU-Pro", 12032, "choice", file="benchmarks/mmlu_pro.parquet",
              hub="TIGER-Lab/MMLU-Pro", columns=_QUESTION, layout="mmlu_pro", subject="category"),
    Benchmark("lab", "lab", len(IN_DISTRIBUTION) * LAB_PER_FAMILY, "exact",
              families=IN_DISTRIBUTION, max_tokens=128),
    Benchmark("lab_ood", "lab OOD", len(OUT_OF_DISTRIBUTION) * LAB_PER_FAMILY, "exact",
              families=OUT_OF_DISTRIBUTION, max_tokens=128),
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _LISTED}

SUITES: dict[str, tuple[str, ...]] = {
    "math5": ("aime24", "amc", "math500", "minerva", "olympiad"),
    "ood3": ("arc_c", "gpqa_diamond", "mmlu_pro"),
    "paper": (
        "aime24",
        "amc",
        "math500",
        "minerva",
        "olympiad",
        "arc_c",
        "gpqa_diamond",
        "mmlu_pro",
    ),
    "lab": ("lab", "lab_ood"),
    "all": tuple(name for name in BENCHMARKS if not name.startswith("lab")),
}


def resolve(names: Iterable[str]) -> list[Benchmark]:
    """The benchmarks that suite and benchmark names stand for, each once, in the order given.

    A name that is both a suite and a benchmark (``lab``) is the suite. Case and "-" for "_" are
    forgiven.

    Raises:
        ConfigError: a name is neither; the message holds the nearest one and the whole list.
    """
    found: dict[str, Benchmark] = {}
    for given in names:
        name = given.strip().lower().replace("-", "_")
        if name not in SUITES and name not in BENCHMARKS:
            known = [*SUITES, *BENCHMARKS]
            raise ConfigError(
                f"unknown benchmark or suite {given!r}{did_you_mean(name, known, '.')} "
                f"Suites: {', '.join(SUITES)}; "
                f"benchmarks: {', '.join(BENCHMARKS)}."
            )
        for member in SUITES.get(name, (name,)):
            found[member] = BENCHMARKS[member]
    return list(found.values())
