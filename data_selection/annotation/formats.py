"""Files of chosen images for annotation programs: Label Studio's tasks and configuration, CVAT's manifest."""

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from data_selection.annotation.originals import Shown
from data_selection.annotation.run_folder import CONFIG, TASKS
from data_selection.common.files import atomic_write, file_digest
from data_selection.common.listed_names import quoted


def write_label_studio(
    folder: Path, names: Sequence[str], addresses: Sequence[str], classes: Sequence[str],
    beliefs: Sequence[tuple[str, float]] | None = None,
) -> None:  # fmt: skip
    """Write label_studio_tasks.json and label_studio_config.xml into a folder.

    addresses: of the images below Label Studio's document root. beliefs: (class, probability) of each image, which
    become predictions. Without classes the configuration asks for the label as text.
    """
    tasks: list[dict[str, Any]] = []
    for place, (name, address) in enumerate(zip(names, addresses, strict=True)):
        task: dict[str, Any] = {"data": {"image": f"/data/local-files/?d={quote(os.fsencode(address))}", "file": name}}
        if beliefs:
            believed, score = beliefs[place]
            choice = {
                "from_name": "label",
                "to_name": "image",
                "type": "choices",
                "value": {"choices": [quoted(believed)]},
            }
            task["predictions"] = [{"model_version": "smoothed probe", "score": round(score, 4), "result": [choice]}]
        tasks.append(task)
    with atomic_write(folder / TASKS, "w") as handle:
        json.dump(tasks, handle, indent=1)
    with atomic_write(folder / CONFIG, "w") as handle:
        handle.write(label_studio_config(classes))


def label_studio_config(classes: Sequence[str]) -> str:
    """Label Studio's labelling configuration: one class for each image, keys 1-9 for the first nine.

    A class that XML has no signs for, as control codes, stands in it as quoted() writes it, and comes back as it was.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    if classes:
        choices = ElementTree.SubElement(
            view, "Choices", name="label", toName="image", choice="single", required="true"
        )
        for number, word in enumerate(classes, 1):
            choice = ElementTree.SubElement(choices, "Choice", value=quoted(word))
            if number < 10:
                choice.set("hotkey", str(number))
    else:
        ElementTree.SubElement(view, "TextArea", name="label", toName="image", maxSubmissions="1", required="true")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def write_cvat(path: Path, places: Sequence[str], files: Sequence[str], shown: Sequence[Shown]) -> None:
    """Write CVAT's manifest of images, one JSON object a line; places: their names below the shared folder."""
    with atomic_write(path, "w") as handle:
        for head in ({"version": "1.1"}, {"type": "images"}):
            handle.write(json.dumps(head) + "\n")
        for place, file, image in zip(places, files, shown, strict=True):
            whole = PurePosixPath(place)
            line = {
                "name": whole.with_suffix("").as_posix(), "extension": whole.suffix, "width": image.width,
                "height": image.height, "meta": {"related_images": []}, "checksum": file_digest(file, "md5"),
            }  # fmt: skip
            handle.write(json.dumps(line) + "\n")
