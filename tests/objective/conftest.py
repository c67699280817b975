"""Makes the helpers beside the tests importable under names of their own."""

import importlib.util
import sys
from pathlib import Path

for name in ("reference", "builders"):
    spec = importlib.util.spec_from_file_location(
        f"objective_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
