"""Training on labels while the pool's other images were changed, damaged or taken away since they were embedded."""

import shutil

import pytest

from data_selection.annotation import label_report
from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from tests.support.labelled_runs import rows, train, values
from tests.support.pages import write_answers

pytestmark = pytest.mark.usefixtures("one_thread", "quick_report")


@pytest.fixture
def labelled(folder, tmp_path):
    """(pool, run folder, names that were chosen and labelled, the others)."""
    pool, run = shutil.copytree(folder, tmp_path / "pool"), tmp_path / "run"
    done = choose_images(pool, 12, run, method="random", model="demo_vit", device="cpu", num_workers=0)
    write_answers(run / "annotate.csv", {name: "ab"[place % 2] for place, name in enumerate(done.files)})
    return pool, run, done.files, sorted({path.name for path in pool.iterdir()} - {*done.files})


def test_labelled_images_that_are_gone_are_left_out_where_asked(labelled, folder):
    pool, run, (gone, renamed, changed, *kept), others = labelled
    (pool / gone).unlink()
    (pool / renamed).rename(pool / "renamed.png")
    shutil.copyfile(pool / kept[0], pool / changed)
    with pytest.raises(UserError, match=r"3 of the 12 labelled images are not .*; --partial goes on without them"):
        train(run)
    _, said = train(run, partial=True)
    assert "warning: left out, 3 of the 12 labelled images are not in" in said
    assert [row[0] for row in rows(run / "labels.csv")] == sorted(kept)
    assert values(run)["accuracy"]["labels"] == 9
    (listed,) = (run / "training").glob("*.txt")  # the pool that is trained on: of what is there the features hold
    assert sorted(listed.read_text().split()) == sorted([*kept, *others])
    shutil.rmtree(pool)
    pool.mkdir()
    shutil.copyfile(folder / gone, pool / "other.png")
    with pytest.raises(UserError, match=r"12 of the 12 labelled images are not .*goes on without them"):
        train(run, partial=True)


@pytest.mark.parametrize("mode", ["smoothed", "linear"])
def test_other_images_that_have_changed_are_named_and_no_obstacle(labelled, mode, monkeypatch):
    monkeypatch.setattr(label_report, "DOUBTFUL", 1000)  # the report shows every image without a label
    pool, run, files, (damaged, exchanged, *rest) = labelled
    (pool / damaged).write_bytes((pool / damaged).read_bytes()[:40])
    shutil.copyfile(pool / rest[0], pool / exchanged)
    _, said = train(run, mode=mode)
    assert f"2 images of {pool} have another content than when they were embedded, or cannot be read" in said
    assert f"left out: {damaged}, {exchanged}" in said
    (listed,) = (run / "training").glob("*.txt")
    assert sorted(listed.read_text().split()) == sorted([*files, *rest])
    assert damaged in {one["file"] for one in values(run)["doubtful"]}
    page = (run / "report.html").read_text()
    assert f'alt="{rest[0]}"' in page
    assert f'alt="{damaged}"' not in page  # its name alone


def test_a_pool_that_is_as_it_was_is_trained_on_whole(labelled):
    pool, run, *_ = labelled
    for path in pool.iterdir():
        path.touch()  # another time, the same content
    _, said = train(run)
    assert "another content" not in said
    assert not list((run / "training").glob("*.txt"))
