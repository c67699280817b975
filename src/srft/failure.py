"""How a command ends that cannot go on."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

from rich.markup import escape

from srft.terminal import Terminal


def fail(message: str, error: BaseException, code: int) -> NoReturn:
    """One line on stderr and the exit code; with SRFT_TRACEBACK=1 the error as it was."""
    if os.environ.get("SRFT_TRACEBACK"):
        raise error
    if "RANK" in os.environ:  # one of several processes, which may all have the same to say
        from srft.parallel.roll_call import is_to_report

        if not is_to_report(error, code):
            leave_quietly(code)
    from srft.secrets import redact

    Terminal(stderr=True).print(
        f"[bold red]error:[/] {escape(redact(message))}", highlight=False, soft_wrap=True
    )
    sys.exit(code)


def leave_quietly(code: int) -> NoReturn:
    """Where another process reports the error: a launcher ends all when the first is gone."""
    time.sleep(2)
    sys.exit(code)
