"""--model timm:NAME starts from timm's own weights, at any input size, and by extraction's rows of them."""

import pytest
import timm
import torch

from data_selection.commands.any_method import main_select
from data_selection.commands.extract import main_extract
from data_selection.common.errors import UserError
from data_selection.embedding.backbones import build_model, load_published, sized, timm_config
from data_selection.images import pools
from deit.main import main
from tests.support.trainer_runs import checkpoint, few_shot, make_colours

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 32


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_colours(tmp_path_factory.mktemp("images"))


@pytest.fixture
def published(monkeypatch):
    """Stands for timm's downloads: the same random weights whenever they are asked for. The keywords of each call."""
    create, calls = timm.create_model, []

    def served(name, pretrained=False, **options):
        if not pretrained:
            return create(name, **options)
        calls.append({"name": name} | options)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return create(name, **options)

    monkeypatch.setattr(timm, "create_model", served)
    return calls


def flags(**more):
    return {"model": "timm:test_vit", "finetune": None, "input_size": SIZE, "mode": "linear", "epochs": None,
            "lr": None, "global_batch_size": None} | more  # fmt: skip


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_training_starts_from_timms_own_weights(images, tmp_path, published, model):
    main(few_shot(images, tmp_path, **flags(model=f"timm:{model}")))
    size = {"img_size": SIZE} if model == "test_vit" else {}  # the others take any
    assert published == [{"name": model, "num_classes": 0, **size}]
    wanted = timm.create_model(model, pretrained=True, num_classes=0, **size).state_dict()
    got = checkpoint(tmp_path)["model"]
    assert all(torch.equal(got[name], value) for name, value in wanted.items())
    assert {name.rpartition(".")[2] for name in got.keys() - wanted.keys()} == {"weight", "bias"}


def test_rows_of_timms_own_weights_are_known(images, tmp_path, published, monkeypatch, capsys):
    train = ["--dataset", str(images / "train"), "--arch", "timm:test_vit", "--input_size", str(SIZE), "--amp", "off",
             "--num_workers", "0", "--device", "cpu", "--output_dir", str(tmp_path)]  # fmt: skip
    main_extract(train)
    name = f"{images.name}_train"
    main_select(["--features", str(tmp_path / f"{name}.npy"), "--method", "random", "--budget", "12", "--filename",
                 "chosen.json", "--output_dir", str(tmp_path), "--device", "cpu"])  # fmt: skip
    words = few_shot(images, **flags(data_set="FOLDERSUBSET", subset_ids=tmp_path / "chosen.json", labels=None))
    real = pools.Pool.image
    monkeypatch.setattr(
        pools.Pool, "image", lambda pool, i: pytest.fail("decoded") if "/train/" in pool.paths[i] else real(pool, i)
    )
    main(words)
    assert "the features of the 12 training images are taken from" in capsys.readouterr().out
    torch.manual_seed(3)
    torch.save(build_model("timm:test_vit").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"by other weights \(timm:test_vit\)"):
        main([*words, "--finetune", str(tmp_path / "other.pth"), "--features", str(tmp_path / f"{name}.npy")])


def test_positions_are_resized_to_the_input(images, tmp_path):
    """As DINOv2's are, from 518 pixels to 224."""
    assert sized(timm_config("timm:vit_small_patch14_dinov2.lvd142m"), 224) == {"img_size": 224}
    model = build_model("timm:test_vit", 2)
    torch.save(model.state_dict(), tmp_path / "big.pth")
    main(few_shot(images, tmp_path / "out", **flags(finetune=tmp_path / "big.pth")))
    assert model.state_dict()["pos_embed"].shape[1] == 1 + 10**2
    assert checkpoint(tmp_path / "out")["model"]["pos_embed"].shape[1] == 1 + 2**2


def test_weights_that_do_not_fit_are_told(published):
    with pytest.raises(UserError, match=r"timm's weights of timm:test_vit do not fit the model: conv1"):
        load_published(build_model("test_resnet", 2), "timm:test_vit", None, ("fc.*",))


def test_a_model_without_weights_says_where_timms_are(images):
    with pytest.raises(UserError, match=r"test_vit on --data-set FOLDER has no .* write --model timm:NAME for timm's"):
        main(few_shot(images, **flags(model="test_vit")))
