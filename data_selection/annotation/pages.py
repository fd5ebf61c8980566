"""Pages for the browser: one file each, with style and scripts inside, that asks for nothing from anywhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data_selection.annotation.arrangement import Arrangement
from data_selection.annotation.originals import Shown
from data_selection.images.answers import DOUBTS, MISSING

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("answers.js", "table.js", "keys.js", "sheet.js", "single.js", "annotate.js")


def render(template: str, styles: Sequence[str], scripts: Sequence[str], **values: Any) -> str:
    """A page of a template in `page/`, its styles and scripts (files beside it) inlined; values are escaped."""
    environment = Environment(loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined)
    inlined = {
        name: [Markup((PARTS / file).read_text(encoding="utf-8")) for file in files]  # our own files, no user's words
        for name, files in (("styles", styles), ("scripts", scripts))
    }
    return environment.get_template(template).render(**inlined, **values)


def annotation_page(
    identity: str,
    title: str,
    files: Sequence[str],
    shown: Sequence[Shown],
    arranged: Arrangement,
    *,
    classes: Sequence[str] = (),
    labels: dict[str, str] | None = None,
    beliefs: Sequence[tuple[str, float]] | None = None,
    why: str = "",
) -> str:
    """The page annotate.html, on which a person labels n images.

    identity: under which the browser keeps the answers. files: names as in the CSV. classes: those known before.
    labels: {file: label} given already. beliefs: (class, probability) of each image by a model; why: a sentence on
    what was chosen.
    """
    position = {place: at for at, place in enumerate(arranged.order)}
    images = []
    for at, place in enumerate(arranged.order):
        image: dict[str, Any] = {
            "file": files[place], "src": shown[place].address, "thumb": shown[place].thumbnail,
            "width": shown[place].width, "height": shown[place].height, "group": arranged.groups[at],
            "alike": [position[other] for other in arranged.alike[place]], "twins": arranged.twins[place],
        }  # fmt: skip
        if labels and labels.get(files[place]):
            image["label"] = labels[files[place]]
        if beliefs:
            image["belief"], image["sure"] = beliefs[place][0], round(beliefs[place][1], 3)
        images.append(image)
    data = {
        "id": identity, "classes": list(classes), "groups": arranged.titles, "images": images,
        "missing": list(MISSING), "doubts": list(DOUBTS),
    }  # fmt: skip
    return render(
        "annotate.html", ("annotate.css",), SCRIPTS, title=title, why=why, count=len(images), data=data,
        believed=bool(beliefs),
    )  # fmt: skip
