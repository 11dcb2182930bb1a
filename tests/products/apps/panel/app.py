"""A button that counts and a file, in the widgets of one session."""

import os

import panel as pn
from fastapi import FastAPI
from panel.io.fastapi import add_applications


def page() -> pn.Column:
    """Build the page of one session."""
    shown = pn.pane.Str(f"count 0 pid {os.getpid()}", css_classes=["shown"])
    arrived = pn.pane.Str("", css_classes=["arrived"])
    add = pn.widgets.Button(name="add")
    given = pn.widgets.FileInput()

    def count(event: object) -> None:
        shown.object = f"count {add.clicks} pid {os.getpid()}"

    def took(event: object) -> None:
        arrived.object = f"file {given.filename}:{len(given.value)} pid {os.getpid()}"

    add.on_click(count)
    given.param.watch(took, "value")
    return pn.Column(shown, add, given, arrived)


app = FastAPI()
add_applications({"/page": page}, app=app)
