"""Labels come back from annotation in many forms; all mean the same, and what is wrong is told."""

import json
import re
import unicodedata
import zipfile
from pathlib import Path

import pytest

from data_selection.common.errors import UserError
from data_selection.images.answers import Answers, alone, one_class, read_answers, write_labels

NAMES = ["cats/a b.jpg", "cats/b.jpg", "dogs/a b.jpg", "dogs/c,d.jpg", "été.png"]
LEFT_OUT = "; take these rows out, or --partial leaves them out"
BOTH = " If both are classes, name all with --classes of choose_images.py"
WANTED = {"cats/b.jpg": "Cat", "dogs/c,d.jpg": "Dog", "été.png": "Cat"}


def read(path: Path, content: str | bytes, **given) -> Answers:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_answers([path], NAMES, **given)


TABLES = {
    "plain": 'file,label\ncats/b.jpg,Cat\n"dogs/c,d.jpg",Dog\nété.png,Cat\n',
    "no header": 'cats/b.jpg,Cat\n"dogs/c,d.jpg",Dog\nété.png,Cat\n',
    "semicolons": "file;label\r\ncats/b.jpg;Cat\r\ndogs/c,d.jpg;Dog\r\nété.png;Cat\r\n",
    "tabs": "file\tlabel\ncats/b.jpg\tCat\ndogs/c,d.jpg\tDog\nété.png\tCat\n",
    "a mark in front": b"\xef\xbb\xbf" + "file;label\ncats/b.jpg;Cat\ndogs/c,d.jpg;Dog\nété.png;Cat\n".encode(),
    "cp1252": "file;label\ncats/b.jpg;Cat\ndogs/c,d.jpg;Dog\nété.png;Cat\n".encode("cp1252"),
    "utf-16": "file\tlabel\ncats/b.jpg\tCat\ndogs/c,d.jpg\tDog\nété.png\tCat\n".encode("utf-16"),
    "label first, third column": "label;who;Image name\nCat;me;cats/b.jpg\nDog;me;dogs/c,d.jpg\nCat;you;été.png\n",
    "absolute": "file;label\n/data/pool/cats/b.jpg;Cat\nC:\\x\\dogs\\c,d.jpg;Dog\n/data/pool/été.png;Cat\n",
    "train in front": "file;label\ntrain/cats/b.jpg;Cat\ntrain/dogs/c,d.jpg;Dog\n./été.png;Cat\n",
    "accents apart": unicodedata.normalize("NFD", 'file,label\ncats/b.jpg,Cat\n"dogs/c,d.jpg",Dog\nété.png,Cat\n'),
    "a spreadsheet's mark": "sep=;\r\nfile;label\r\ncats/b.jpg;Cat\r\ndogs/c,d.jpg;Dog\r\nété.png;Cat\r\n",
    "its mark in utf-16": "sep=;\r\nfile;label\r\ncats/b.jpg;Cat\r\ndogs/c,d.jpg;Dog\r\nété.png;Cat\r\n".encode(
        "utf-16"
    ),
    "Label Studio": "image,id,choice,annotator\n/data/upload/1/0a1b2c3d-b.jpg,1,Cat,1\n"
    "/data/local-files/?d=pool/dogs/c%2Cd.jpg,2,Dog,1\nhttp://host/%C3%A9t%C3%A9.png,3,Cat,1\n",
}


@pytest.mark.parametrize("form", TABLES)
def test_tables_of_all_forms_mean_the_same(tmp_path, form):
    found = read(tmp_path / "labels.csv", TABLES[form])
    assert found.labels == WANTED
    assert found.faults == []
    (told,) = found.understood
    assert ("column 2" in told) == (form == "no header")  # else the header's word


def test_other_xml_is_refused_and_not_read_as_no_image(tmp_path):
    boxes = "<annotation><filename>b.jpg</filename><object><name>cat</name></object></annotation>"
    with zipfile.ZipFile(tmp_path / "voc.zip", "w") as archive:
        archive.writestr("Annotations/b.xml", boxes)
    with pytest.raises(
        UserError, match=r"voc\.zip: no <image> of CVAT's export for images is in it; boxes are no labels"
    ):
        read_answers([tmp_path / "voc.zip"], NAMES)


def test_label_studio_and_cvat(tmp_path):
    def task(file, *words, cancelled=False):
        result = [{"type": "choices", "value": {"choices": [word]}} for word in words]
        return {"data": {"image": file}, "annotations": [{"was_cancelled": cancelled, "result": result}]}

    tasks = [
        task("/data/local-files/?d=x/cats/b.jpg", "Cat"), task("s3://b/dogs/c%2Cd.jpg", "Dog"), task("été.png", "Cat"),
        task("cats/a%20b.jpg", "Dog", cancelled=True),
    ]  # fmt: skip
    assert read(tmp_path / "tasks.json", json.dumps(tasks)).labels == WANTED
    small = [{"image": "cats/b.jpg", "choice": "Cat"}, {"image": "dogs/c,d.jpg", "choice": {"choices": ["Dog"]}}]
    assert read(tmp_path / "min.json", json.dumps(small)).labels == {"cats/b.jpg": "Cat", "dogs/c,d.jpg": "Dog"}
    typed = {
        "data": {"image": "cats/b.jpg"},
        "annotations": [{"result": [{"type": "textarea", "value": {"text": ["Cat"]}}]}],
    }
    assert read(tmp_path / "typed.json", json.dumps([typed])).labels == {"cats/b.jpg": "Cat"}
    rows = "".join(
        f'<image id="0" name="{file}"><tag label="{word}" source="manual"/></image>' for file, word in WANTED.items()
    )
    xml = f"<annotations><version>1.1</version>{rows}<image id='9' name='cats/a b.jpg'/></annotations>"
    assert read(tmp_path / "annotations.xml", xml).labels == WANTED
    with zipfile.ZipFile(tmp_path / "cvat.zip", "w") as archive:
        archive.writestr("annotations.xml", xml)
    assert read_answers([tmp_path / "cvat.zip"], NAMES).labels == WANTED
    with zipfile.ZipFile(tmp_path / "imagenet.zip", "w") as archive:
        for file, word in WANTED.items():
            archive.writestr(f"{word}/{Path(file).name}", b"")
    assert read_answers([tmp_path / "imagenet.zip"], NAMES).labels == WANTED
    for file, word in WANTED.items():
        (tmp_path / "sorted" / word).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sorted" / word / Path(file).name).touch()
    assert read_answers([tmp_path / "sorted"], NAMES).labels == WANTED


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '[{"data": {"image": "b.jpg"}, "annotations": [{"result": [{"value": {"choices": ["x", "y"]}}]}]}]'),
        ("a.json", '[{"image": "b.jpg", "choice": {"choices": ["x", "y"]}}]'),
        ("a.csv", 'image,choice\nb.jpg,"{""choices"": [""x"", ""y""]}"\n'),
        ("a.xml", "<a><image name='b.jpg'><tag label='x'/><tag label='y'/></image></a>"),
    ],
)
def test_two_labels_of_one_image_are_never_made_one(tmp_path, name, content):
    told = f"1 images have two labels: cats/b.jpg ('x' and 'y' in {tmp_path / name}); correct one of the two"
    assert told in read(tmp_path / name, content).faults


def test_of_several_annotators_the_last_who_chose_counts(tmp_path):
    given = [{"result": [{"value": {"choices": [word]}}]} for word in ("x", "y")]
    task = {"data": {"image": "b.jpg"}, "annotations": [*given, {"result": []}]}
    assert read(tmp_path / "a.json", json.dumps([task])).labels == {"cats/b.jpg": "y"}


def test_label_studio_s_json_may_hold_anything(tmp_path):
    good = [{"result": [{"value": {"choices": ["Cat"]}}]}]
    odd = [{"annotations": 5}, {"annotations": {"result": 1}}, {"annotations": [{"result": 5}]}]
    tasks = [{"data": {"image": "http://[x/b.jpg"}, "annotations": good}]
    tasks += [{"data": {"image": "été.png"}, **one} for one in odd]
    assert read(tmp_path / "a.json", json.dumps(tasks)).labels == {"cats/b.jpg": "Cat"}


def test_an_image_that_the_pool_lacks_is_no_title(tmp_path):
    found = read(tmp_path / "a.csv", "gone.jpg,x\ncats/b.jpg,x\nété.png,y\n")
    assert found.faults == ["1 rows are of no image of the pool: gone.jpg (a.csv)" + LEFT_OUT]


def test_a_label_may_be_0(tmp_path):
    found = read(tmp_path / "a.json", json.dumps([{"image": "b.jpg", "choice": 0}, {"image": "c,d.jpg", "choice": 1}]))
    assert found.labels == {"cats/b.jpg": "0", "dogs/c,d.jpg": "1"}


def test_a_class_is_one_however_its_accents_are_written(tmp_path):
    rows = "".join(
        f"{name},{unicodedata.normalize(form, 'été')}\n" for name, form in (("b.jpg", "NFC"), ("été.png", "NFD"))
    )
    assert set(read(tmp_path / "a.csv", rows).labels.values()) == {"été"}


def test_what_systems_leave_beside_images_has_no_label(tmp_path):
    files = [
        "x/Cat/b.jpg",
        "x/Cat/._b.jpg",
        "__MACOSX/x/Cat/b.jpg",
        "x/.thumbs/b.jpg",
        "x/@eaDir/b.jpg",
        "x/Dog/c,d.jpg",
    ]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in ["__MACOSX/._a.xml", *files]:
            archive.writestr(file, b"")
    for file in files:
        (tmp_path / "a" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / file).touch()
    for source in ("a.zip", "a"):
        found = read_answers([tmp_path / source], NAMES)
        assert (found.labels, found.faults) == ({"cats/b.jpg": "Cat", "dogs/c,d.jpg": "Dog"}, [])


def test_what_is_wrong_is_told_together(tmp_path):
    table = "file,label\ncats/b.jpg,Cat\nnone.jpg,Cat\ncats/b.jpg,Dog\ndogs/c,d.jpg,\na b.jpg,Cat\n".replace(
        "dogs/c,d.jpg", '"dogs/c,d.jpg"'
    )
    found = read(tmp_path / "a.csv", table, asked=["cats/b.jpg", "dogs/c,d.jpg"])
    assert found.labels == {"cats/b.jpg": "Cat"}
    unknown, both = found.faults
    wanted = "2 rows are of no image of the pool: none.jpg (a.csv), a b.jpg (a.csv; several are called so)" + LEFT_OUT
    assert unknown == wanted
    assert both.startswith("1 images have two labels: cats/b.jpg ('Cat' and 'Dog' in ")
    assert one_class(found) == ["all 1 labels are 'Cat': two classes are needed"]
    assert found.unlabelled == ["dogs/c,d.jpg"]


def test_a_bare_name_is_the_image_that_was_asked_for(tmp_path):
    found = read(tmp_path / "a.csv", "a b.jpg,Dog\nb.jpg,Cat\n", asked=["dogs/a b.jpg"])
    assert found.labels == {"dogs/a b.jpg": "Dog", "cats/b.jpg": "Cat"}


def test_an_image_that_was_asked_for_and_lies_elsewhere_is_not_taken(tmp_path):
    names = ["1/a/b.jpg", "2/a/b.jpg", "3/c/b.jpg"]
    (tmp_path / "a.csv").write_text("a/b.jpg,Cat\na%2Fb.jpg, Dog \n3/c/b.jpg, Dog \n")
    found = read_answers([tmp_path / "a.csv"], names, asked=["3/c/b.jpg"])
    assert found.labels == {"3/c/b.jpg": "Dog"}
    assert found.faults[0] == (
        "2 rows are of no image of the pool: a/b.jpg (a.csv; several are called so), "
        "a%2Fb.jpg (a.csv; several are called so)" + LEFT_OUT
    )


def test_what_a_file_was_found_by_is_told(tmp_path):
    def lines(*files):
        (tmp_path / "a.csv").write_text(
            "".join(f"{file},{'Cat' if i % 2 else 'Dog'}\n" for i, file in enumerate(files))
        )
        return read_answers([tmp_path / "a.csv"], ["cats/b.jpg", "dogs/C.jpg", "e.jpg"])

    assert len(lines("cats/b.jpg", "C.jpg", "/data/e.jpg", "/data/cats/b.jpg").understood) == 1
    other = lines("birds/b.jpg", "C.jpg")
    assert other.labels == {"cats/b.jpg": "Dog", "dogs/C.jpg": "Cat"}
    assert other.understood[1] == "1 rows by their file name, in another folder: birds/b.jpg as cats/b.jpg"
    capitals = lines("CATS/B.jpg", "c.jpg", "x.jpg", "e.jpg")
    assert capitals.faults[0] == (
        "3 rows are of no image of the pool: CATS/B.jpg (a.csv; did you mean cats/b.jpg?), "
        "c.jpg (a.csv; did you mean dogs/C.jpg?), x.jpg (a.csv)" + LEFT_OUT
    )


def test_misspelt_words_are_named(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    words = ["Pullover"] * 4 + ["PULLOVER", "Pulover", "Shirt", "Shirt", "Coat"]
    (tmp_path / "a.csv").write_text("".join(f"{name},{word}\n" for name, word in zip(names, words, strict=True)))
    free = read_answers([tmp_path / "a.csv"], names)
    assert [fault.split(":")[-1] for fault in free.faults] == [" did you mean 'Pullover'?" + BOTH] * 2
    assert alone(free) == ["Coat", "PULLOVER", "Pulover"]
    twice = ["Pullover"] * 5 + ["Pulover"] * 2 + ["Shirt"] * 2
    (tmp_path / "b.csv").write_text("".join(f"{name},{word}\n" for name, word in zip(names, twice, strict=True)))
    assert (
        read_answers([tmp_path / "b.csv"], names).faults[0].startswith("'Pulover' (2 images) stands beside 'Pullover'")
    )
    thrice = ["Pullover"] * 4 + ["Pulover"] * 3 + ["Shirt"] * 2  # too many for a slip
    (tmp_path / "c.csv").write_text("".join(f"{name},{word}\n" for name, word in zip(names, thrice, strict=True)))
    assert read_answers([tmp_path / "c.csv"], names).faults == []


def test_words_beside_the_classes_that_are_known(tmp_path):
    names = [f"{i}.png" for i in range(9)]

    def found(words, classes):
        rows = [f"{name},{word}\n" for name, word in zip(names, words, strict=False)]
        (tmp_path / "a.csv").write_text("".join(rows))
        return read_answers([tmp_path / "a.csv"], names, classes=classes)

    slips = found(["cat", "dog", "cta", "Dog", "cow"], ["cat", "dog"])
    assert [fault.split(" ")[0] for fault in slips.faults] == ["'Dog'", "'cta'"]
    assert "'Dog' (1 images) is not among the classes cat, dog: did you mean 'dog'? If it is" in slips.faults[0]
    assert slips.understood[-1].endswith("not among cat, dog: 'Dog' (1 images), 'cow' (1 images), 'cta' (1 images)")
    assert found(["cat", "dog", "cta", "cta", "cta"], ["cat", "dog"]).faults == []  # three times is no slip
    assert found(["cat", "dog", "car"], ["cat", "dog", "car"]).faults == []
    assert found(["cat", "dog", "car"], []).faults == []
    among = found(["horse", "horse", "hrse", "cat"], ["cat", "dog"])
    assert among.faults == ["'hrse' (1 images) stands beside 'horse' (2): did you mean 'horse'?" + BOTH]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "none.csv does not exist"),
        ("a.csv", "cats/b.jpg,x,y\ncats/a b.jpg,z,w\n", "3 columns and none is called label or class"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be read .* Label Studio"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "[" * 99_999, "cannot be read"),
        ("a.json", '{"x": 1}', r"^label file \S+ is no export of Label Studio: a list of tasks is needed"),
        ("a.xml", "<a", "cannot be read"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares entities"),
        ("a.zip", "no zip", "cannot be read"),
    ],
)
def test_what_is_no_label_file_is_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_answers([tmp_path / name], NAMES) if content is None else read(tmp_path / name, content)


def test_written_labels_are_read_again(tmp_path):
    assert read(tmp_path / "labels.csv", write_labels(WANTED)).labels == WANTED
    assert write_labels({"b.png": "", "a,b.png": "Cat"}) == 'file,label\n"a,b.png",Cat\nb.png,\n'


@pytest.mark.parametrize(("words", "fault"), [
    (["cat", "dog", "N/A"], r"^'N/A' \(1 images\) says that there is no label: leave these cells empty"),
    (["cat", "dog", "?", "?", "?", "?"], r"^'\?' \(4 images\) says that there is no label"),
    (["1", "1", "1", "1.0", "2", "2"], r"^'1.0' \(1 images\) stands beside '1' \(3\)"),
])  # fmt: skip
def test_words_that_no_class_is_called_by_are_asked_about(tmp_path, words, fault):
    names = [f"{i}.png" for i in range(len(words))]
    (tmp_path / "a.csv").write_text("".join(f"{name},{word}\n" for name, word in zip(names, words, strict=True)))
    (found,) = read_answers([tmp_path / "a.csv"], names).faults
    assert re.search(fault, found)
    assert read_answers([tmp_path / "a.csv"], names, classes=sorted(set(words))).faults == []


def test_two_labels_are_told_with_their_files(tmp_path):
    """Where files say one thing each, and where one of them says two."""
    (tmp_path / "a.csv").write_text(
        "file,label\nb.jpg,Cat\nc,d.jpg,Dog\n".replace("c,d", '"c,d').replace("jpg,D", 'jpg",D')
    )
    (tmp_path / "b.csv").write_text("file,label\nb.jpg,Dog\n")
    found = read_answers([tmp_path / "a.csv", tmp_path / "b.csv"], NAMES)
    wanted = f"cats/b.jpg ('Cat' in {tmp_path / 'a.csv'} and 'Dog' in {tmp_path / 'b.csv'}); correct one of the two"
    assert found.faults == [f"1 images have two labels: {wanted}"]
    (tmp_path / "b.csv").write_text("file,label\nb.jpg,Cat\n")
    assert read_answers([tmp_path / "a.csv", tmp_path / "b.csv"], NAMES).faults == []
