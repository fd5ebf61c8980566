"""What the trainer's flags mean, in plain torch and timm driven by hand: the weights after the same batches."""

import timm.optim
import timm.scheduler as schedules
import torch
from timm.utils import ModelEmaV3
from torch import nn

from tests.support.flag_runs import CLASSES, small_model


def schedule(flags, optimizer, updates):
    """(timm's schedule of the flags, whether it counts steps); None where the rate stays as it is."""
    by_step = flags.get("sched_unit") == "step"
    unit = updates if by_step else 1
    length, warmup = flags["epochs"] * unit, flags["warmup_epochs"] * unit
    if flags.get("warmup_steps") is not None:
        warmup = min(flags["warmup_steps"], length / 4)
    noise = flags.get("lr_noise")
    shared = {
        "t_in_epochs": not by_step, "warmup_t": warmup, "warmup_lr_init": flags.get("warmup_lr", 1e-6),
        "noise_range_t": [part * length for part in noise] if noise else None,
        "noise_pct": flags.get("lr_noise_pct", 0.67), "noise_std": flags.get("lr_noise_std", 1.0),
    }  # fmt: skip
    low = {"t_initial": length, "lr_min": flags["min_lr"]}
    decay, rate = flags.get("decay_epochs", 30) * unit, flags.get("decay_rate", 0.1)
    make = {
        "cosine": lambda: schedules.CosineLRScheduler(optimizer, **low, **shared),
        "tanh": lambda: schedules.TanhLRScheduler(optimizer, **low, **shared),
        "poly": lambda: schedules.PolyLRScheduler(optimizer, power=rate, **low, **shared),
        "step": lambda: schedules.StepLRScheduler(optimizer, decay_t=decay, decay_rate=rate, **shared),
    }
    return make[flags["sched"]]() if flags["sched"] != "none" else None, by_step


def distilled_loss(flags, teacher, outputs, images, targets):
    """DeiT's loss: the class token by the labels, the distillation token by the teacher's word or probabilities."""
    logits, student = outputs
    alpha, tau = flags.get("distillation_alpha", 0.5), flags.get("distillation_tau", 1.0)
    base = nn.CrossEntropyLoss(label_smoothing=flags["smoothing"])(logits, targets)
    with torch.no_grad():
        told = teacher(images)
    if flags["distillation_type"] == "hard":
        return (1 - alpha) * base + alpha * nn.CrossEntropyLoss()(student, told.argmax(1))
    p, q = (told / tau).softmax(1), (student / tau).softmax(1)
    return (1 - alpha) * base + alpha * (p * (p.log() - q.log())).sum() * tau**2 / p.numel()


def teacher_of(flags):
    teacher = small_model(flags["teacher_model"], CLASSES)
    teacher.load_state_dict(torch.load(flags["teacher_path"], weights_only=True)["model"])
    return teacher.eval()


def optimizer_of(flags, model, size):
    """timm's optimiser of the flags, for steps of `size` images."""
    special = {"eps": flags["opt_eps"]} if "opt_eps" in flags else {}
    special |= {"betas": tuple(flags["opt_betas"])} if "opt_betas" in flags else {}
    return timm.optim.create_optimizer_v2(
        model, flags["opt"].lower(), lr=flags["lr"] * size / 512, weight_decay=flags["weight_decay"],
        momentum=flags["momentum"], layer_decay=flags.get("layer_decay"), **special,
    )  # fmt: skip


def training_mode(flags, model):
    """Training mode, but for batch norm that keeps its statistics."""
    model.train()
    for layer in model.modules() if flags.get("batch_norm") == "fixed" else ():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def prepare_head(flags, head):
    """The head, which the weights bring, scaled; to SGD without decay a larger rate is a larger gradient."""
    rate = flags.get("head_rate", 1)
    times = 1280 / head.weight.shape[1] if rate == "auto" else rate
    for value in head.parameters() if "head_scale" in flags or "head_rate" in flags else ():
        value.data.mul_(flags.get("head_scale", 1))
        value.register_hook(lambda gradient: times * gradient)


def plain_training(run, passes=1):
    """(weights, averaged weights) after the batches that a run recorded, `passes` of them to a step."""
    flags = run.flags
    model = small_model(flags["model"], CLASSES, flags["input_size"])
    model.load_state_dict(torch.load(flags["finetune"], weights_only=True)["model"])
    prepare_head(flags, model.get_classifier())
    distils = flags.get("distillation_type", "none") != "none"
    if distils:
        model.set_distilled_training(True)
        teacher = teacher_of(flags)
    batches = [run.seen[start : start + passes] for start in range(0, len(run.seen), passes)]
    size = sum(len(part.images) for part in batches[0])
    first = flags.get("start_epoch", 1)
    epochs = flags["epochs"] + flags.get("cooldown_epochs", 0)
    updates = len(batches) // (epochs - first + 1)
    optimizer = optimizer_of(flags, model, size)
    ema = ModelEmaV3(model, flags["model_ema_decay"], use_warmup=bool(flags.get("model_ema_warmup")))
    rates, by_step = schedule(flags, optimizer, updates)
    if rates is None and flags.get("layer_decay"):
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_scale"]
    for number, parts in enumerate(batches, (first - 1) * updates):
        if rates is not None and by_step:
            rates.step_update(number)
        elif rates is not None:
            rates.step(number // updates)
        training_mode(flags, model)
        optimizer.zero_grad()
        for images, targets, _ in parts:
            outputs = model(images)
            if distils:
                loss = distilled_loss(flags, teacher, outputs, images, targets)
            else:
                loss = nn.CrossEntropyLoss(label_smoothing=flags["smoothing"])(outputs, targets)
            (loss * len(images) / sum(len(part.images) for part in parts)).backward()
        if flags.get("clip_grad"):
            nn.utils.clip_grad_norm_(model.parameters(), flags["clip_grad"])
        optimizer.step()
        ema.update(model, number + 1 if flags.get("model_ema_warmup") else None)
    return model.state_dict(), ema.module.state_dict()


def distance(one, other):
    """Norm of the difference of two sets of weights."""
    assert list(one) == list(other)
    parts = [(one[name].double() - other[name].double()).flatten() for name in one]
    return torch.cat(parts).norm().item()
