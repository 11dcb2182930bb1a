"""A notebook of marimo that counts, and says which process does."""

import marimo

app = marimo.App()


@app.cell
def _():
    import os

    import marimo as mo

    add = mo.ui.button(value=0, on_click=lambda count: count + 1, label="ADD")
    add  # noqa: B018  # the last expression of a cell is what it shows
    return add, mo, os


@app.cell
def _(add, mo, os):
    mo.md(f"count {add.value} pid {os.getpid()} end")
    return


if __name__ == "__main__":
    app.run()
