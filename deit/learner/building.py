"""What the flags ask for, built: a data set's defaults, the model with its weights, optimiser, schedule and loss."""

import argparse
import copy
import dataclasses
from pathlib import Path

import torch
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from torch import nn

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.embedding.backbones import DEMO_WEIGHTS, build_model, load_weights
from data_selection.embedding.forward import memory_layout, write_out_attention
from data_selection.embedding.preprocessing import Preprocess, preprocess_of
from data_selection.embedding.sizes import check_size
from data_selection.images import pools
from deit.engine import Learner
from deit.gradients import FlatGradients
from deit.learner.linear import scale_head
from deit.learner.optimizers import make_optimizer, optimizer_settings
from deit.learner.schedules import make_scheduler
from deit.losses import Criterion
from deit.runs.checkpoints import classifier_layers, load_pretrained
from deit.runs.meters import RunLog
from deit.samples.draws import INIT, seed_drop_layers, seed_of, seeded
from deit.samples.pipeline import SMALL, Pipeline

REFERENCE_BATCH = 512  # --lr is for this many images per step


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a data set brings where no flag says otherwise."""

    model: str = "deit_small_patch16_224"
    input_size: int = 224
    mean: tuple[float, ...] = pools.IMAGENET_MEAN
    std: tuple[float, ...] = pools.IMAGENET_STD
    pretrained: Path | None = None  # used with that model alone
    view: Preprocess | None = None  # what evaluation sees; None: the papers' way


SMALL_GREY = Defaults("demo_vit", 28, (pools.FASHION_MEAN,) * 3, (pools.FASHION_STD,) * 3, DEMO_WEIGHTS)
DEFAULTS = {"DEMO": SMALL_GREY, "FASHIONMNIST": SMALL_GREY}  # by name without SUBSET; all others: Defaults()


def resolve(args: argparse.Namespace) -> tuple[str, Defaults]:
    """Fill in the flags whose defaults a data set brings. Returns (name without SUBSET, Defaults)."""
    name = args.data_set.removesuffix("SUBSET")
    defaults = DEFAULTS.get(name, Defaults())
    if args.model not in (None, defaults.model):  # another model brings neither that size nor those weights
        defaults = dataclasses.replace(defaults, model=args.model, input_size=Defaults.input_size, pretrained=None)
    args.model = defaults.model
    if args.pixels == "model":
        view = dataclasses.replace(preprocess_of(args.model, args.input_size), background=args.background)
        defaults = dataclasses.replace(defaults, input_size=view.size, mean=view.mean, std=view.std, view=view)
    args.input_size = args.input_size or defaults.input_size
    if args.augment == "shift" and defaults.view is None:  # shifted is what evaluation sees
        defaults = dataclasses.replace(defaults, view=papers_view(args, defaults))
    return name, defaults


def check_learner(args: argparse.Namespace) -> None:
    """Raise UserError, before data and weights are opened, where --opt or --model cannot do what other flags ask of it.

    Of resolved flags; the model is not filled with numbers.
    """
    optimizer_settings(args)
    if args.distillation_type != "none":
        with torch.device("meta"):
            check_student(build_model(args.model, 1, img_size=args.input_size), args.model)


def check_student(model: nn.Module, name: str) -> None:
    """Raise UserError for a model without a distillation head."""
    if not hasattr(model, "set_distilled_training"):
        raise UserError(f"--distillation-type needs a distilled --model (deit_small_distilled_patch16_224), not {name}")


def papers_view(args: argparse.Namespace, defaults: Defaults) -> Preprocess:
    """What evaluation sees the papers' way: the centre of 256/224 of the size, of small images all."""
    small = args.input_size <= SMALL
    return Preprocess(
        args.input_size, defaults.mean, defaults.std, crop=1.0 if small else 224 / 256, squash=small,
        background=args.background,
    )  # fmt: skip


def make_pipeline(args: argparse.Namespace, defaults: Defaults) -> Pipeline:
    return Pipeline(
        args.input_size, defaults.mean, defaults.std, args.train_interpolation, args.color_jitter, args.aa,
        args.reprob, args.remode, args.recount, defaults.view, args.augment,
    )  # fmt: skip


def build(args: argparse.Namespace, classes: int, log: RunLog) -> nn.Module:
    """The model of the flags on the CPU with fresh weights, the same on every process."""
    if not classes:
        raise UserError(f"--data-set {args.data_set} has no labels to train on")
    log.say(f"Creating model: {args.model}")
    with seeded(seed_of(args.seed, INIT)):
        model = fresh(args, classes, log)
    check_size(model, args.input_size, f"--model {args.model}", "--input-size")
    return model


def fresh(args: argparse.Namespace, classes: int, log: RunLog) -> nn.Module:
    """The model of the flags; --drop-path is left out, which is said, where the model does not know it."""
    try:
        model = build_model(args.model, classes, drop_path_rate=args.drop_path, img_size=args.input_size)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        model = build_model(args.model, classes, img_size=args.input_size)
    if args.drop_path and not any(isinstance(layer, DropPath) and layer.drop_prob for layer in model.modules()):
        log.say(f"--drop-path {args.drop_path:g} is left out: {args.model} has no stochastic depth")
    return model


def build_learner(
    args: argparse.Namespace,
    world: World,
    classes: int,
    global_batch: int,
    updates: int,
    log: RunLog,
    pretrained: Path | str | None,
) -> Learner:
    """Model, optimiser, schedule, EMA and loss.

    updates: steps in an epoch. pretrained: a file, `timm:NAME`, `none`, or None where a checkpoint follows.
    """
    model = build(args, classes, log)
    if args.head_scale < 1:  # before the weights, which may bring a head
        scale_head(model, 0.0)
    if pretrained == "none":
        log.say("--finetune none: training starts from random weights")
    elif pretrained is not None:
        load_pretrained(model, pretrained, log.say, args.checkpoint_key, args.input_size)
        log.say(f"pretrained weights: {pretrained}")
    log.say(f"number of params: {sum(p.numel() for p in model.parameters() if p.requires_grad)}")
    criterion = Criterion(args.smoothing)
    if args.distillation_type != "none":
        criterion = distillation(args, model, classes, world, log)
    model.to(world.device).to(memory_format=memory_layout(model))
    ema = None
    if args.model_ema:  # before the drop layers change, after the weights are there
        ema = ModelEmaV3(
            model, args.model_ema_decay, use_warmup=args.model_ema_warmup,
            device=torch.device("cpu") if args.model_ema_force_cpu else None,
        )  # fmt: skip
    draws = seed_drop_layers(model, args.seed, args.drop, classifier_layers(model) if args.drop else ())
    optimizer = make_optimizer(args, model, args.lr * global_batch / REFERENCE_BATCH)
    amp = autocast_type(args.amp, world.device)
    if amp is not None and world.device.type == "cpu":
        write_out_attention(model)
    if args.compile:
        model.compile()  # in place: the names of the weights stay
    return Learner(
        model, optimizer, make_scheduler(args, optimizer, updates), args.sched_unit == "step",
        torch.amp.GradScaler(world.device.type, enabled=amp is torch.float16), ema, draws,
        FlatGradients(model.parameters(), world), criterion, amp, world,
        fixed=batch_norms(model) if args.batch_norm == "fixed" else [], input_size=args.input_size,
        fresh=copy.deepcopy(optimizer.state_dict()),
    )  # fmt: skip


def distillation(args: argparse.Namespace, model: nn.Module, classes: int, world: World, log: RunLog) -> Criterion:
    """The Criterion with its teacher; the student must have a distillation head."""
    check_student(model, args.model)
    model.set_distilled_training(True)  # type: ignore[operator]  # a method, for torch it is a module
    teacher = build_model(args.teacher_model, classes)
    load_weights(teacher, args.teacher_path, log=log.say)
    check_size(teacher, args.input_size, f"--teacher-model {args.teacher_model}", "--input-size")
    teacher.to(world.device).eval().requires_grad_(False)
    return Criterion(args.smoothing, teacher, args.distillation_type, args.distillation_alpha, args.distillation_tau)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norm layers of a model, whose statistics --batch-norm fixed keeps."""
    return [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def autocast_type(name: str, device: torch.device) -> torch.dtype | None:
    """torch dtype of --amp, None for full precision; auto: on a GPU bf16 where it has it, else fp16; on a CPU none.

    `measured` is as auto where nothing was measured: a run without steps.
    """
    if name in ("auto", "measured") and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
