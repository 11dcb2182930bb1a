"""An application of Reflex that counts, and says which process does; the state of each tab is in that process."""

import os

import reflex as rx


class Counter(rx.State):
    """One tab's."""

    count: int = 0
    pid: int = 0

    @rx.event
    def add(self) -> None:
        """Count."""
        self.count += 1
        self.pid = os.getpid()


app = rx.App()
app.add_page(lambda: rx.button(f"count {Counter.count} pid {Counter.pid}", on_click=Counter.add), route="/")
