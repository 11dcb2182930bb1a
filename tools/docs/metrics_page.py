"""docs/metrics.md, made from the declarations of all figures: `python -m tools.docs.metrics_page > docs/metrics.md`."""

from __future__ import annotations

from limpet.operate.admin.metrics import page

if __name__ == "__main__":
    print(page(), end="")
