"""timm's optimiser as the flags ask, and the head's own learning rate."""

import argparse
from typing import Any

import timm.optim
import torch
from torch import nn

from data_selection.common.errors import UserError
from deit.runs.checkpoints import classifier_layers

WIDTH = 1280  # inputs of the head that the rate of the few-shot recipe was set on


def optimizer_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of --opt that other flags give. Raises UserError for one that is unknown or takes no such flag."""
    name = args.opt.lower()
    if name.removeprefix("lookahead_").startswith("kron"):
        raise UserError(
            f"--opt {args.opt} draws numbers that no checkpoint keeps, so no run could be continued exactly"
        )
    try:
        info = timm.optim.get_optimizer_info(name.removeprefix("lookahead_"))
    except ValueError:
        known = ", ".join(map(str, timm.optim.list_optimizers()))
        raise UserError(
            f"unknown --opt {args.opt!r}: use one of {known}, each also with lookahead_ before it"
        ) from None
    settings: dict[str, Any] = {"momentum": args.momentum} | ({"eps": args.opt_eps} if info.has_eps else {})
    if args.opt_betas:
        if not info.has_betas:
            raise UserError(f"--opt-betas does nothing with --opt {args.opt}: leave it out")
        settings["betas"] = tuple(args.opt_betas)
    return settings


def make_optimizer(args: argparse.Namespace, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """timm's optimiser of --opt; weight decay spares what has one dimension, and token and position embeddings."""
    settings = optimizer_settings(args)
    try:
        optimizer = timm.optim.create_optimizer_v2(
            model, args.opt.lower(), lr=lr, weight_decay=args.weight_decay, layer_decay=args.layer_decay, **settings
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:  # a package or value it needs
        raise UserError(f"--opt {args.opt} cannot be used here ({error}): use another one") from None
    set_head_rate(model, optimizer, args.head_rate)
    if getattr(optimizer, "is_second_order", False):
        raise UserError(f"--opt {args.opt} needs second derivatives, which no step here computes: use another one")
    return optimizer


def set_head_rate(model: nn.Module, optimizer: torch.optim.Optimizer, factor: float | str) -> None:
    """Give the classifier's weights a learning rate of their own, `factor` times that of the others.

    `auto` is WIDTH / its inputs: a step of Adam moves each weight by the rate, and so an answer by the rate times the
    size of all inputs, which a wide head makes much larger than a narrow one (after Yang et al., arXiv 2203.03466).
    """
    if factor == 1:
        return
    heads = {id(value): value for layer in classifier_layers(model) for value in layer.parameters()}
    if factor == "auto":
        factor = WIDTH / next((value.shape[1] for value in heads.values() if value.dim() > 1), WIDTH)
    for group in list(optimizer.param_groups):
        mine = [value for value in group["params"] if id(value) in heads]
        if mine:
            others = [value for value in group["params"] if id(value) not in heads]
            optimizer.param_groups.append(group | {"params": others})
            group["params"], group["lr_scale"] = mine, group.get("lr_scale", 1.0) * float(factor)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
