"""Build a backbone by name and load its weights strictly: every difference is declared by the caller or an error."""

import difflib
import functools
import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data_selection.common.errors import UserError
from data_selection.common.kinds import Log
from data_selection.common.paths import DEMO
from data_selection.embedding.checkpoint_files import listed, read_checkpoint, strip_prefixes, unwrap
from data_selection.images.downloads import cache_folder, fetch_file

DEMO_WEIGHTS = DEMO / "demo_vit.safetensors"
WIDTHS = {"vit_tiny": (192, 3), "vit_small": (384, 6), "vit_base": (768, 12)}  # embedding, heads; as in DINO and DeiT
DINO = "https://dl.fbaipublicfiles.com/dino/"
DINO_WEIGHTS = {
    (arch, patch): f"{DINO}{stem}/{stem}.pth"
    for arch, patch, stem in (
        ("vit_small", 16, "dino_deitsmall16_pretrain"),
        ("vit_small", 8, "dino_deitsmall8_pretrain"),
        ("vit_base", 16, "dino_vitbase16_pretrain"),
        ("vit_base", 8, "dino_vitbase8_pretrain"),
    )
}
DINO_HEAD = ("head.mlp.*", "head.last_layer.*")  # the projection head of a full DINO checkpoint: no part of a backbone


class Loaded(NamedTuple):
    """What load_weights did: the local file, and the declared differences (names of tensors)."""

    path: Path
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def build_model(
    name: str,
    num_classes: int = 0,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    *,
    patch_size: int = 16,
    img_size: int | None = None,
) -> nn.Module:
    """A timm model with fresh weights; num_classes=0 gives features instead of logits.

    name: `demo_vit` (28 x 28 images, 4 blocks), `vit_tiny` / `vit_small` / `vit_base` (224 x 224 images; DINO's and
    DeiT's ViTs, LayerNorm eps 1e-6; patch_size is for these), or any name of timm, with or without `timm:` before it.
    img_size: side of the images where it is not the model's own; what takes any size is built as ever.
    Raises UserError for an unknown name.
    """
    import timm  # slow to import: --help must not wait for it
    from timm.models.vision_transformer import VisionTransformer

    vit = functools.partial(
        VisionTransformer, num_classes=num_classes, drop_rate=drop_rate, drop_path_rate=drop_path_rate
    )
    if name == "demo_vit":
        return vit(img_size=28, patch_size=7, embed_dim=192, depth=4, num_heads=6, dynamic_img_size=True)
    if name in WIDTHS:
        width, heads = WIDTHS[name]
        return vit(img_size=img_size or 224, patch_size=patch_size, embed_dim=width, depth=12, num_heads=heads)
    # timm drops None; some families do not take drop_path_rate at all
    model: nn.Module = timm.create_model(
        name.removeprefix("timm:"),
        num_classes=num_classes,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate or None,
        **sized(timm_config(name), img_size),
    )
    return model


def timm_config(name: str) -> Any:
    """What timm holds of a model's pretraining, its pretrained_cfg; None where it holds nothing.

    name: of timm, with or without `timm:` before it. Raises UserError for an unknown one, and for an unknown tag.
    """
    import timm

    timm_name = name.removeprefix("timm:")
    if not timm.is_model(timm_name):
        known = ["demo_vit", *WIDTHS, *timm.list_models()]
        close = difflib.get_close_matches(timm_name, known, 3, 0.6)
        raise UserError(
            f"unknown backbone {name!r}: use demo_vit, {', '.join(WIDTHS)} or a timm name"
            + (f" (close: {', '.join(close)})" if close else "")
        )
    try:
        return timm.get_pretrained_cfg(timm_name)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(f"{timm_name.split('.')[0]}.*")) or "none"
        raise UserError(f"timm has no weights called {timm_name} (known: {tags})") from None


def sized(config: Any, img_size: int | None) -> dict[str, Any]:
    """The keywords of timm.create_model for images of another size; none for models that take any."""
    fixed = config is not None and config.fixed_input_size and img_size not in (None, config.input_size[-1])
    return {"img_size": img_size} if fixed and img_size is not None else {}


def build_pretrained(name: str, img_size: int | None = None) -> nn.Module:
    """A timm model without classifier, with the weights that timm publishes for it (its own download and cache).

    img_size: as for build_model; timm resamples position embeddings to it.
    Raises UserError where the name is unknown, timm has no weights for it, or they cannot be fetched.
    """
    import timm

    timm_name, published = name.removeprefix("timm:"), timm_config(name)
    if published is None or not published.has_weights:  # timm would go on with random weights
        raise UserError(f"timm has no weights for {timm_name}: give a file with --pretrained_weights")
    try:
        model: nn.Module = timm.create_model(timm_name, pretrained=True, num_classes=0, **sized(published, img_size))
        return model
    except OSError as error:
        where = f"https://huggingface.co/{published.hf_hub_id}" if published.hf_hub_id else published.url
        raise UserError(
            f"cannot fetch timm's weights of {timm_name} ({str(error).splitlines()[0]}): start again with a network, "
            f"or fetch model.safetensors from {where} on another machine and give it with --pretrained_weights"
        ) from None


def load_published(model: nn.Module, name: str, img_size: int | None = None, classifier: Sequence[str] = ()) -> None:
    """Load the weights of build_pretrained into a model of that name, in place; its classifier stays as it is.

    classifier: patterns of the names of its tensors. Raises UserError as build_pretrained does, and where other tensors
    differ.
    """
    given, own = build_pretrained(name, img_size).state_dict(), model.state_dict()
    kept = [key for key in own if _declared(key, classifier)]
    unlike = [key for key in {**own, **given} if key not in kept and (key in own) != (key in given)]
    unlike += [key for key in given if key in own and key not in kept and given[key].shape != own[key].shape]
    if unlike:
        raise UserError(f"timm's weights of {name} do not fit the model: {listed(unlike)}. Give a file of weights")
    model.load_state_dict(given | {key: own[key] for key in kept}, strict=True)


def state_digest(model: nn.Module, but: Sequence[str] = ()) -> str:
    """SHA-256 (hex) of a model's tensors and their names: tells weights apart that come from no single file.

    but: patterns of the names of tensors that do not count.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if _declared(name, but):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def default_weights(name: str, patch_size: int = 16) -> Path | str:
    """Where the pretrained weights of a backbone come from: a path or a URL. Raises UserError where none are known."""
    if name == "demo_vit":
        return DEMO_WEIGHTS
    if (name, patch_size) in DINO_WEIGHTS:
        return DINO_WEIGHTS[name, patch_size]
    known = ", ".join(f"{arch}/{patch}" for arch, patch in DINO_WEIGHTS)
    raise UserError(
        f"no pretrained weights are known for {name} with patch size {patch_size} "
        f"(known: demo_vit, {known}): "
        "give a file with --pretrained_weights, or write timm:NAME for timm's own weights"
    )


def load_weights(
    model: nn.Module,
    source: Path | str,
    *,
    checkpoint_key: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    resize_pos_embed: bool = False,
    log: Log = print,
    hint: str = "save the dictionary of tensors alone, best as .safetensors",
) -> Loaded:
    """Load pretrained weights into model, in place; float16 ones are cast. Returns Loaded.

    source: a .pth / .pt / .safetensors file or an https address (fetched into torch.hub's cache); a path that does
    not exist is an error, never a download (see local_file). Entries teacher, model, state_dict, student and the
    prefixes module., backbone., _orig_mod. are unwrapped; checkpoint_key: the entry that must be there, and is taken.
    allow_missing, allow_unexpected: patterns (fnmatch) of tensor names that the file may lack, or hold in another
    shape, and that it may hold in excess. resize_pos_embed: resample `pos_embed` (bicubic) where the model's patch grid
    differs. log: called with one line per declared difference. hint: what the error says to do where the file holds no
    tensors by name.
    Raises UserError, listing both sides, where anything else differs; the model is then unchanged.

    Deviation from the released code, which ignored missing tensors, and downloaded other weights for a mistyped path.
    """
    path = local_file(source, log)
    own = model.state_dict()
    given = strip_prefixes(unwrap(read_checkpoint(path), checkpoint_key, path, hint), own, path)
    if resize_pos_embed and "pos_embed" in given and "pos_embed" in own:
        given["pos_embed"] = _resample(given["pos_embed"], model, own["pos_embed"], log)

    def differs(key: str) -> bool:
        return given[key].shape != own[key].shape

    missing = [key for key in own if key not in given or (differs(key) and _declared(key, allow_missing))]
    unexpected = [key for key in given if key not in own]
    shapes = [key for key in own if key in given and differs(key) and key not in missing]
    undeclared = [key for key in missing if not _declared(key, allow_missing)]
    excess = [key for key in unexpected if not _declared(key, allow_unexpected)]
    if undeclared or excess or shapes:
        raise UserError(_difference(path, model, own, given, undeclared, excess, shapes))
    if len(missing) == len(own):
        raise UserError(f"weights {path} hold no tensor of {type(model).__name__}: give the weights of this backbone")
    for keys, what in ((missing, "keep their fresh values, not in"), (unexpected, "are ignored, only in")):
        if keys:
            log(f"{len(keys)} tensors {what} {path.name}: {listed(keys)}")
    kept = {key: given[key].to(own[key].dtype) if key not in missing else own[key] for key in own}
    model.load_state_dict(kept, strict=True)
    return Loaded(path, tuple(missing), tuple(unexpected))


def local_file(source: Path | str, log: Log = print, what: str = "weights file") -> Path:
    """The file of a path or an https address, which is fetched. Raises UserError where a path does not exist.

    The name of one of DINO's files, where no such file is, means the one that an earlier command has downloaded; log
    gets a line then. what: how the error calls the file.
    """
    if str(source).startswith(("https://", "http://")):
        return fetch_file(str(source))
    path = Path(source)
    if path.is_file():
        return path
    hint = "make it with scripts/demo/make_demo_backbone.py" if path == DEMO_WEIGHTS else "check the path"
    address = {url.rsplit("/", 1)[1]: url for url in DINO_WEIGHTS.values()}.get(path.name)
    if address:
        downloaded = cache_folder() / path.name
        if downloaded.is_file():
            log(f"{path} does not exist: taking {downloaded}, downloaded before")
            return downloaded
        hint += f", or give {address} to download it"
    raise UserError(f"{what} {path} does not exist: {hint}")


def _resample(given: torch.Tensor, model: nn.Module, own: torch.Tensor, log: Log) -> torch.Tensor:
    """pos_embed (1, tokens, D) on the model's patch grid."""
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    # the class token and registers have places in it, or have not (DeiT-3, DINOv2 with registers)
    extra = getattr(model, "num_prefix_tokens", 1) if patches is None else own.shape[1] - patches
    old, new = given.shape[1] - extra, own.shape[1] - extra
    if given.shape == own.shape or round(old**0.5) ** 2 != old:
        return given  # equal, or no square grid: then the shapes are compared and reported
    from timm.layers import resample_abs_pos_embed

    size = list(getattr(getattr(model, "patch_embed", None), "grid_size", None) or [round(new**0.5)] * 2)
    log(f"position embedding resampled from {round(old**0.5)} x {round(old**0.5)} to {size[0]} x {size[1]} patches")
    return resample_abs_pos_embed(given.float(), new_size=size, num_prefix_tokens=extra)


def _declared(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _difference(
    path: Path,
    model: nn.Module,
    own: dict[str, torch.Tensor],
    given: dict[str, torch.Tensor],
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
) -> str:
    """One line that lists both sides of a difference and says what to do."""
    sides = [
        f"missing in the file ({len(missing)}): {listed(missing)}" if missing else "",
        f"only in the file ({len(unexpected)}): {listed(unexpected)}" if unexpected else "",
        f"of another shape ({len(shapes)}): "
        + listed([f"{key} {list(given[key].shape)} instead of {list(own[key].shape)}" for key in shapes])
        if shapes
        else "",
    ]
    distilled = ", such as deit_small_distilled_patch16_224" if "dist_token" in unexpected else ""
    return (
        f"weights {path} do not fit {type(model).__name__}: {'; '.join(side for side in sides if side)}. "
        f"Choose the backbone and patch size that the file was made for{distilled}, or another file"
    )
