"""A run folder of the demo pool, as if it were somebody's own images: PNG files, a choice, and the chosen labels."""

from pathlib import Path

from PIL import Image

from data_selection.commands.run_choose import choose_images
from data_selection.common.files import atomic_write
from data_selection.images.answers import write_labels
from data_selection.images.pools import load_demo

IMAGES, BUDGET = 2_000, 100
WORDS = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def make_run(folder, images=IMAGES, budget=BUDGET, device="auto"):
    """Write images/ (the first `images` of the demo pool), choose `budget` of them into run/, labels into labels.csv.

    labels.csv has what the annotators of Fashion-MNIST said of the chosen images. Returns the path of run/.
    """
    demo, pool = load_demo(), folder / "images"
    pool.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(demo["train_images"][:images]):
        path = pool / f"{i:05}.png"
        if not path.exists():
            with atomic_write(path) as handle:
                Image.fromarray(pixels).save(handle, "PNG")
    done = choose_images(pool, budget, folder / "run", model="demo_vit", classes=WORDS, device=device)
    with atomic_write(folder / "labels.csv", "w") as handle:
        handle.write(write_labels({name: WORDS[demo["train_labels"][int(Path(name).stem)]] for name in done.files}))
    return folder / "run"
