"""A reactive counter and a file, known to one session alone."""

import os
from pathlib import Path

from shiny import App, Inputs, Outputs, Session, reactive, render, ui

app_ui = ui.page_fluid(
    ui.input_action_button("add", "add"),
    ui.output_text("shown"),
    ui.input_file("given", "file"),
    ui.output_text("arrived"),
    ui.download_link("taken", "take it"),
)


def server(input: Inputs, output: Outputs, session: Session) -> None:  # noqa: A002  # Shiny goes by the name
    """Serve one session."""
    count = reactive.value(0)

    @reactive.effect
    @reactive.event(input.add)
    def _() -> None:
        count.set(count.get() + 1)

    @render.text
    def shown() -> str:
        return f"count {count.get()} pid {os.getpid()}"

    @render.text
    def arrived() -> str:
        given = input.given()
        if not given:
            return ""
        return f"file {given[0]['name']}:{Path(given[0]['datapath']).stat().st_size} pid {os.getpid()}"

    @render.download(filename="count.txt")
    def taken():
        yield f"count {count.get()} pid {os.getpid()}"


app = App(app_ui, server)
