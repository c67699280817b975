"""The lab: generated reasoning tasks with expert traces, and a small base model that ships here.

With it the whole method runs, learns and can be compared on a laptop:

    from srft.lab import base_model_path, lab_eval, lab_train
"""

from pathlib import Path

from srft.lab.data import lab_eval, lab_train
from srft.lab.tasks import FAMILIES, IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, TASK_SETS, make_problem

__all__ = [
    "FAMILIES",
    "IN_DISTRIBUTION",
    "OUT_OF_DISTRIBUTION",
    "QUICKSTART",
    "REAL",
    "TASK_SETS",
    "base_model_path",
    "lab_eval",
    "lab_train",
    "make_problem",
]

QUICKSTART = Path(__file__).parent / "quickstart.yaml"
REAL = Path(__file__).parent / "real.yaml"


def base_model_path() -> Path:
    """Folder of the shipped base model; loads with AutoModelForCausalLM and AutoTokenizer."""
    return Path(__file__).parent / "base"
