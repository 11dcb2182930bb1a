"""docs/fronts.md: each configuration in it is what the command before it prints.

`python -m tools.docs.fronts_page docs/fronts.md` puts in what the commands print now; a test compares.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

from limpet.cli import commands

BLOCK = re.compile(
    r"^    limpet (?P<words>front [^\n]*)\n\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def printed(words: str) -> str:
    """Return what `limpet WORDS` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        commands.main(shlex.split(words))
    return out.getvalue()


def renewed(page: str) -> str:
    """Return *page* with what its commands print now."""

    def renew(block: re.Match[str]) -> str:
        return f"    limpet {block['words']}\n\n```{block['language']}\n{printed(block['words'])}```"

    return BLOCK.sub(renew, page)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text()))
