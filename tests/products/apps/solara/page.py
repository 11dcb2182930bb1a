"""A counter and a file, in the state of one kernel."""

import os

import solara


@solara.component
def Page() -> None:
    """Show the page of one session."""
    count, set_count = solara.use_state(0)
    arrived, set_arrived = solara.use_state("")
    solara.Text(f"count {count} pid {os.getpid()}", classes=["shown"])
    solara.Button("add", on_click=lambda: set_count(count + 1))

    def took(file: solara.components.file_drop.FileInfo) -> None:
        set_arrived(f"file {file['name']}:{len(file['data'])} pid {os.getpid()}")

    solara.FileDrop(on_file=took, lazy=False)
    solara.Text(arrived, classes=["arrived"])
