"""Takes the picture of a report that the README shows.

    python demo/photograph_report.py ARTIFACT PICTURE.png

Needs a Chromium (`make browser`). The picture is the page at a laptop's width, from its top to its first
layers.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

WIDTH = 1120
LAYERS = 250  # pixels of the table of layers
CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def main(artifact: Path, picture: Path) -> None:
    """Writes the picture, and says how large it is."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=sandbox)
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        page.goto((artifact / "report.html").resolve().as_uri())
        box = page.locator("#layers").bounding_box()
        assert box is not None
        height = round(box["y"] + LAYERS)
        page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()
    print(f"{picture}: {WIDTH}×{height}, {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
