"""Take the README's pictures of the page for labelling and of the report, in a headless Chromium.

    python scripts/demo/make_pictures.py --work /tmp/pictures

Needs requirements-pages.txt and a Chromium. A run of the demo pool is made in `--work` and trained on there.
"""

import argparse
import shutil
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_selection.common.errors import run
from data_selection.common.paths import DEMO

SIZE = {"width": 1200, "height": 800}
COLOURS = 128  # of a palette: a page needs no more


def shot(page, path):
    """A picture of what a page shows, small enough for a README."""
    from PIL import Image

    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def take(folder, out):
    """annotate.png and report.png of a trained run folder, into `out`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto((folder / "annotate.html").as_uri())
        table = (folder.parent / "labels.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder.parent / "half.csv").write_text("".join(table[: len(table) // 2]), encoding="utf-8")
        page.set_input_files("#file", folder.parent / "half.csv")
        page.wait_for_selector("#notice:has-text('labels taken')")
        page.reload()  # without the notice
        page.keyboard.press("v")
        shot(page, out / "annotate.png")
        page.goto((folder / "report.html").as_uri())
        shot(page, out / "report.png")
        browser.close()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the pool and the run")
    parser.add_argument("--out", type=Path, default=DEMO, help="where the pictures go")
    args = parser.parse_args(argv)
    from deit.labelled import train_on_labels
    from scripts.demo.demo_run import make_run  # both import torch, which takes seconds

    folder = make_run(args.work, device="cpu")
    train_on_labels(folder, [args.work / "labels.csv"], mode="smoothed", device="cpu")
    take(folder, args.out)
    print(f"wrote annotate.png and report.png in {args.out}")


if __name__ == "__main__":
    sys.exit(run(main))
