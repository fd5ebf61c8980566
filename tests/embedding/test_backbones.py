"""Backbones: names, strict loading in every wrapping, downloads from a loopback server."""

import argparse
import functools
import hashlib
import http.server
import threading

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from data_selection.common.errors import UserError
from data_selection.embedding.backbones import (
    DINO_HEAD,
    DINO_WEIGHTS,
    build_model,
    build_pretrained,
    default_weights,
    load_weights,
    state_digest,
)  # fmt: skip
from data_selection.images.downloads import fetch_file

SILENT = {"log": lambda line: None}


@pytest.fixture(scope="module")
def weights():
    """Random weights of the demo backbone, by name."""
    return {key: torch.randn_like(value) for key, value in build_model("demo_vit").state_dict().items()}


def equal(model, weights):
    return all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_dino_vit_is_timms_deit():
    """spec: 150 tensors, the same names, LayerNorm eps 1e-6, the same class token."""
    ours, theirs = build_model("vit_small").eval(), timm.create_model("deit_small_patch16_224", num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert (len(ours.state_dict()), ours.norm.eps) == (150, 1e-6)
    with torch.inference_mode():
        image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        assert torch.equal(ours(image), theirs(image))


def test_names():
    assert build_model("vit_tiny", patch_size=8).patch_embed.num_patches == 28 * 28
    assert build_model("timm:resnet10t", num_classes=3, drop_path_rate=0.1).num_classes == 3
    assert build_model("demo_vit", num_classes=7).head.out_features == 7
    with pytest.raises(UserError, match=r"unknown backbone 'vit_smal': .*close: vit_small"):
        build_model("vit_smal")
    assert default_weights("vit_base", 8) == DINO_WEIGHTS["vit_base", 8]
    with pytest.raises(UserError, match="no pretrained weights are known for vit_tiny with patch size 16"):
        default_weights("vit_tiny")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "_orig_mod."])
@pytest.mark.parametrize("entry", [None, "teacher", "student", "model", "state_dict"])
def test_wrappings(tmp_path, weights, prefix, entry):
    content = {prefix + key: value for key, value in weights.items()}
    if entry:
        content = {entry: content, "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(content, tmp_path / "w.pth")
    model = build_model("demo_vit")
    assert load_weights(model, tmp_path / "w.pth").missing == ()
    assert equal(model, weights)


def test_checkpoint_key_comes_first(tmp_path, weights):
    other = {key: value + 1 for key, value in weights.items()}
    torch.save({"teacher": other, "student": weights}, tmp_path / "w.pth")
    model = build_model("demo_vit")
    load_weights(model, tmp_path / "w.pth", checkpoint_key="student")
    assert equal(model, weights)


def test_float16_safetensors_are_cast(tmp_path, weights):
    save_file({key: value.half() for key, value in weights.items()}, tmp_path / "w.safetensors")
    model = build_model("demo_vit")
    load_weights(model, tmp_path / "w.safetensors")
    assert equal(model, {key: value.half().float() for key, value in weights.items()})


def test_projection_head_must_be_declared(tmp_path, weights):
    head = {"head.mlp.0.weight": torch.ones(2), "head.last_layer.weight_v": torch.ones(2)}
    torch.save({"teacher": weights | head}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"only in the file \(2\): head.mlp.0.weight, head.last_layer.weight_v"):
        load_weights(build_model("demo_vit"), tmp_path / "w.pth")
    lines = []
    loaded = load_weights(build_model("demo_vit"), tmp_path / "w.pth", allow_unexpected=DINO_HEAD, log=lines.append)
    assert loaded.unexpected == tuple(head)
    assert "2 tensors are ignored, only in w.pth: head.mlp.0.weight" in lines[0]


def test_difference_lists_both_sides_and_changes_nothing(tmp_path, weights):
    content = weights | {"extra": torch.ones(1), "norm.weight": torch.ones(5)}
    del content["cls_token"]
    torch.save(content, tmp_path / "w.pth")
    model = build_model("demo_vit")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path / "w.pth")
    for part in (
        "missing in the file (1): cls_token",
        "only in the file (1): extra",
        "norm.weight [5] instead of [192]",
    ):
        assert part in str(caught.value)
    assert equal(model, before)


def test_new_head_is_declared(tmp_path, weights):
    """Finetuning: a head that is absent, or has another number of classes, keeps its fresh values."""
    for content in (weights, weights | {"head.weight": torch.ones(5, 192), "head.bias": torch.ones(5)}):
        torch.save(content, tmp_path / "w.pth")
        model = build_model("demo_vit", num_classes=10)
        head = model.head.weight.clone()
        loaded = load_weights(model, tmp_path / "w.pth", allow_missing=("head.weight", "head.bias"), **SILENT)
        assert loaded.missing == ("head.weight", "head.bias")
        assert torch.equal(model.head.weight, head)
        assert torch.equal(model.norm.weight, weights["norm.weight"])
        with pytest.raises(UserError, match=r"head.weight"):
            load_weights(model, tmp_path / "w.pth")


def test_weights_of_something_else_stop(tmp_path):
    torch.save({"conv.weight": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="hold no tensor of VisionTransformer"):
        load_weights(build_model("demo_vit"), tmp_path / "w.pth", allow_missing=("*",), allow_unexpected=("*",))


def test_position_embedding_is_resized_on_request(tmp_path, weights):
    big = build_model("demo_vit").state_dict() | {"pos_embed": torch.randn(1, 1 + 7 * 7, 192)}
    torch.save(big, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"pos_embed \[1, 50, 192\] instead of \[1, 17, 192\]"):
        load_weights(build_model("demo_vit"), tmp_path / "w.pth")
    model, lines = build_model("demo_vit"), []
    load_weights(model, tmp_path / "w.pth", resize_pos_embed=True, log=lines.append)
    assert torch.equal(model.pos_embed, resample_abs_pos_embed(big["pos_embed"], [4, 4]))
    assert lines == ["position embedding resampled from 7 x 7 to 4 x 4 patches"]


def test_position_embedding_without_a_place_for_the_class_token_is_resized(tmp_path):
    """As DeiT-3's and that of DINOv2 with registers: of patches alone."""
    vit = functools.partial(VisionTransformer, patch_size=7, embed_dim=8, depth=1, num_heads=1, num_classes=0)
    big, model = (vit(img_size=side, no_embed_class=True, reg_tokens=2) for side in (49, 28))
    torch.save(big.state_dict(), tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth", resize_pos_embed=True, log=lambda _: None)
    assert torch.equal(model.pos_embed, resample_abs_pos_embed(big.pos_embed, [4, 4], num_prefix_tokens=0))


def test_damaged_and_unsafe_files(tmp_path, weights):
    torch.save(weights, tmp_path / "whole.pth")
    save_file(weights, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        data = (tmp_path / name).read_bytes()
        for cut in (0, 100, len(data) // 2):
            (tmp_path / f"cut{name}").write_bytes(data[:cut])
            with pytest.raises(UserError, match=r"fetch them again|damaged"):
                load_weights(build_model("demo_vit"), tmp_path / f"cut{name}")
    torch.save({"model": weights, "recipe": functools.partial(print)}, tmp_path / "unsafe.pth")
    with pytest.raises(UserError, match="may run code"):
        load_weights(build_model("demo_vit"), tmp_path / "unsafe.pth")
    for held, entries in (({"epoch": 3, "notes": "none"}, "epoch, notes"), ({0: torch.ones(2)}, "0")):
        torch.save(held, tmp_path / "nameless.pth")
        with pytest.raises(UserError, match=f"hold entries {entries}, no tensors by name"):
            load_weights(build_model("demo_vit"), tmp_path / "nameless.pth")


def test_timms_weights(monkeypatch):
    """timm's own download, without a network: never random weights."""
    with pytest.raises(UserError, match=r"no weights called resnet10t\.nothere \(known: resnet10t\.c3_in1k\)"):
        build_pretrained("timm:resnet10t.nothere")
    with pytest.raises(UserError, match="timm has no weights for vit_small_patch16_18x2_224"):
        build_pretrained("timm:vit_small_patch16_18x2_224")
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no connection")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"\(no connection\): .*https://huggingface.co/timm/resnet10t.c3_in1k"):
        build_pretrained("timm:resnet10t.c3_in1k")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
    assert build_pretrained("timm:resnet10t").num_classes == 0


def test_digest_of_tensors():
    model = build_model("demo_vit")
    first = state_digest(model)
    assert state_digest(model.half().float()) != first
    assert state_digest(build_model("demo_vit")) != first
    assert len({state_digest(torch.nn.ModuleDict({name: model.norm})) for name in "ab"}) == 2


def test_mistyped_path_is_no_download(tmp_path):
    with pytest.raises(UserError, match=r"dino_typo.pth does not exist: check the path"):
        load_weights(build_model("demo_vit"), tmp_path / "dino_typo.pth")


@pytest.fixture
def server():
    """Serves `files` {name: bytes} on the loopback; `log` holds (name, Range); a name in `cut` breaks off half-way."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name, wanted = self.path.strip("/"), self.headers.get("Range")
            self.server.log.append((name, wanted))
            data, start = self.server.files.get(name), int(wanted[6:-1]) if wanted else 0
            if data is None or start >= len(data):
                self.send_error(404 if data is None else 416)
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if name in self.server.cut:
                self.server.cut.remove(name)
                self.wfile.write(data[start : (start + len(data)) // 2])
                return
            self.wfile.write(data[start:])

        def log_message(self, *_):
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.files, served.log, served.cut = {}, [], []
        served.base = f"http://127.0.0.1:{served.server_port}/"
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def test_download_once(tmp_path, server):
    server.files["w.pth"] = b"x" * 3_000_000
    for _ in range(2):
        path = fetch_file(server.base + "w.pth", tmp_path / "new")
        assert path.read_bytes() == server.files["w.pth"]
    assert server.log == [("w.pth", None)]
    assert {entry.name for entry in path.parent.iterdir()} == {"w.pth", "w.pth.address"}


def test_interrupted_download_goes_on(tmp_path, server):
    server.files["w.pth"], server.cut = bytes(range(256)) * 1000, ["w.pth"]
    with pytest.raises(
        UserError, match=r"cannot fetch http.*w.pth: .*put it at .*the connection ended after 128000 of"
    ):
        fetch_file(server.base + "w.pth", tmp_path)
    assert not (tmp_path / "w.pth").exists()
    assert fetch_file(server.base + "w.pth", tmp_path).read_bytes() == server.files["w.pth"]
    assert server.log[1] == ("w.pth", "bytes=128000-")


def test_partial_file_of_another_length_is_dropped(tmp_path, server):
    server.files["w.pth"] = b"abc"
    (tmp_path / "w.pth.partial").write_bytes(b"longer than it")
    assert fetch_file(server.base + "w.pth", tmp_path).read_bytes() == b"abc"


def test_digest(tmp_path, server):
    digest = hashlib.sha256(b"right").hexdigest()[:8]
    server.files[f"vit-{digest}.pth"] = b"wrong"
    with pytest.raises(UserError, match=f"another digest than {digest}"):
        fetch_file(f"{server.base}vit-{digest}.pth", tmp_path)
    server.files[f"vit-{digest}.pth"] = b"right"
    assert fetch_file(f"{server.base}vit-{digest}.pth", tmp_path).read_bytes() == b"right"


def test_no_network_says_what_to_do(tmp_path, server):
    with pytest.raises(UserError, match=r"put it at .*lost.pth \(Not Found\)"):
        fetch_file(server.base + "lost.pth", tmp_path)
    with pytest.raises(
        UserError, match=r"cannot fetch http://127.0.0.1:9/w.pth: start again, or fetch it .* put it at"
    ):
        fetch_file("http://127.0.0.1:9/w.pth", tmp_path)
    with pytest.raises(UserError, match="names no file"):
        fetch_file("http://127.0.0.1:9/", tmp_path)


def test_load_from_address(tmp_path, server, weights, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save(weights, tmp_path / "w.pth")
    server.files["w.pth"] = (tmp_path / "w.pth").read_bytes()
    model = build_model("demo_vit")
    assert load_weights(model, server.base + "w.pth").path == tmp_path / "home/hub/checkpoints/w.pth"
    assert equal(model, weights)
