"""A notebook of marimo that counts, says which process does, and shows a picture that is a file of that process."""

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
    pixels = bytes((add.value * 40, 100, 200)) * 100 * 100
    netpbm = b"P6 100 100 255\n" + pixels
    mo.vstack([mo.md(f"count {add.value} pid {os.getpid()} end"), mo.download(netpbm, filename=f"{add.value}.ppm")])
    return


if __name__ == "__main__":
    app.run()
