"""A tus server whose uploads are each on the disk of one process, as they are where disks are not shared."""

import hashlib
import os
from pathlib import Path

from fastapi import FastAPI
from tuspyserver import create_tus_router

own_disk = Path(f"disk-of-{os.getpid()}")
app = FastAPI()
app.include_router(create_tus_router(prefix="files", files_dir=str(own_disk)))


@app.get("/files/{upload}/kept")
def kept(upload: str) -> dict[str, str | int]:
    """Say what has arrived, and which process has it."""
    path = own_disk / upload
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "", "pid": os.getpid()}
