"""A browser without a window, and the picture of a report that README shows, which this makes of one of eval.py's:

python tests/browsing.py runs/portraits-gender/evaluation-1000/report.html
"""

import argparse
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1000, 1500
SHOWN = Path(__file__).parent.parent / "docs" / "report.png"
"""What README shows."""


def chromium():
    """Where it is, None where it is not."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def browser():
    """One that leaves nothing in the user's home."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, sync_playwright() as playwright:
        own = os.environ | {"XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"], env=own)
        yield running
        running.close()


def screenshot(running, page, path):
    """The top of a page, in few enough colours that it is small."""
    tab = running.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    tab.goto(page.resolve().as_uri())
    tab.screenshot(path=path)
    tab.close()
    Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="a report.html")
    options = parser.parse_args()
    if not options.report.is_file():
        parser.error(f"{options.report} is no file: name a report.html, as eval.py leaves it")
    if chromium() is None:
        parser.error("no Chromium on this machine (apt-get install chromium)")
    with browser() as running:
        screenshot(running, options.report, SHOWN)
