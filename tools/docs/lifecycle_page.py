"""The diagram in docs/lifecycle.md, made from the table of the lifecycle.

Run as `python -m tools.docs.lifecycle_page docs/lifecycle.md`.
"""

from __future__ import annotations

import sys

from limpet.fleet.lifecycle import TABLE, Action, State


def diagram() -> str:
    """Return the table as a Mermaid state diagram, which docs/lifecycle.md shows."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.STOPPED}"]
    for (state, event), (after, action) in TABLE.items():
        does = "" if action is Action.NOTHING else f" / {action}"
        lines.append(f"    {state} --> {after}: {event}{does}")
    return "\n".join(lines)


def inserted(text: str) -> str:
    """Return the document *text* with the diagram in its Mermaid block."""
    before, _, rest = text.partition("```mermaid\n")
    return f"{before}```mermaid\n{diagram()}\n```{rest.partition('```')[2]}"


if __name__ == "__main__":
    with open(sys.argv[1], "r+") as file:
        document = inserted(file.read())
        file.seek(0)
        file.truncate()
        file.write(document)
