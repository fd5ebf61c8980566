"""The two ways in which make_demo_backbone.py pretrains a ViT without labels, as steps on batches of images."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from data_selection.common.errors import UserError
from data_selection.embedding.backbones import build_model
from data_selection.images.pools import FASHION_MEAN, FASHION_STD

GLOBAL_SIZE, LOCAL_SIZE = 28, 14  # pixels: 16 and 4 patches of 7 x 7
GLOBAL_SCALE, LOCAL_SCALE = (0.5, 1.0), (0.2, 0.5)  # share of the image's area that a crop shows
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE, CENTRE_MOMENTUM = 0.04, 0.1, 0.9


class Head(nn.Module):
    """DINO's projection head: an MLP, L2 normalisation, unit-norm prototypes; (B, dim) -> (B, prototypes)."""

    def __init__(self, dim, hidden, bottleneck, prototypes):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def forward(self, x):
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def random_crops(images, size, scale, generator):
    """A random resized crop of each image with brightness, gamma and sharpness changed.

    images: (B, 1, 28, 28) float in 0..1. size: side of the crops in pixels. scale: (low, high) share of the area.
    Returns (B, 1, size, size) float. Not flipped: all shoes of Fashion-MNIST point the same way.
    """
    n = len(images)

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    area, log_ratio = uniform(*scale), uniform(math.log(3 / 4), math.log(4 / 3))
    width = (area * log_ratio.exp()).sqrt().clamp(max=1.0)  # (B,) share of the image's side
    height = (area / log_ratio.exp()).sqrt().clamp(max=1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, (n, 1, size, size), align_corners=False)
    crops = F.grid_sample(images, grid, align_corners=False)  # (B, 1, size, size)
    blurred = F.avg_pool2d(F.pad(crops, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    crops = torch.where(uniform(0, 1, 1, 1, 1) < 0.2, blurred, crops)
    crops = crops * uniform(0.7, 1.3, 1, 1, 1)  # the background is black, so brightness is a factor
    return crops.clamp(0, 1) ** uniform(0.8, 1.25, 1, 1, 1)


def as_input(crops):
    """(B, 1, H, W) in 0..1 -> (B, 3, H, W), normalised as at extraction."""
    return ((crops - FASHION_MEAN) / FASHION_STD).expand(-1, 3, -1, -1)


def dino_loss(student, teacher, centre):
    """Cross-entropy of every student crop with every other global teacher crop.

    student: (crops, B, P) logits. teacher: (2, B, P) logits. centre: (P,).
    """
    targets = F.softmax((teacher - centre) / TEACHER_TEMPERATURE, dim=-1)
    log_p = F.log_softmax(student / STUDENT_TEMPERATURE, dim=-1)
    pairs = [(t, s) for t in range(len(targets)) for s in range(len(log_p)) if s != t]
    return -sum((targets[t] * log_p[s]).sum(-1).mean() for t, s in pairs) / len(pairs)


def cosine(start, end, progress):
    """From start to end along half a cosine; progress in 0..1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


class Pretraining:
    """Modules, optimiser, epoch and seconds: what a run is, and what a checkpoint holds."""

    def __init__(self, args):
        self.args, self.epoch, self.seconds = args, 0, 0.0
        backbone = build_model("demo_vit", num_classes=0, drop_path_rate=args.drop_path)
        self.modules = nn.ModuleDict({"backbone": backbone})

    def finish(self, parameters):
        """Make the optimiser, once every module is there."""
        decayed = [p for p in parameters if p.ndim > 1]
        plain = [p for p in parameters if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], fused=True)

    def state(self):
        return {
            "modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": self.epoch,
            "seconds": self.seconds, "recipe": recipe(self.args),
        }  # fmt: skip

    def load(self, state):
        if state["recipe"] != recipe(self.args):
            raise UserError(f"the unfinished run was started with {state['recipe']}, not {recipe(self.args)}")
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]

    def set_rates(self, progress):
        """Learning rate (linear warm-up, then a half cosine) and weight decay (0.04 rising to 0.2)."""
        args = self.args
        warmup = min(1.0, progress * args.epochs / args.warmup_epochs) if args.warmup_epochs else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * args.batch_size / 256 * warmup * cosine(1.0, 0.002, progress)
        self.optimizer.param_groups[0]["weight_decay"] = cosine(0.04, 0.2, progress)

    def descend(self, loss, parameters, still=()):
        """One optimiser step; the parameters in `still` do not move."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in still:
            parameter.grad = None
        nn.utils.clip_grad_norm_(parameters, 3.0)
        self.optimizer.step()


class Reconstruction(Pretraining):
    """A linear decoder draws the whole image, unaugmented, from the class token of a random crop."""

    def __init__(self, args):
        super().__init__(args)
        self.backbone = self.modules["backbone"]
        self.modules["decoder"] = nn.Linear(self.backbone.embed_dim, GLOBAL_SIZE**2)
        self.finish(list(self.modules.parameters()))

    def step(self, images, progress, generator):
        """One update on images (B, 1, 28, 28); progress of the whole run in 0..1. Returns the loss."""
        self.set_rates(progress)
        crops = random_crops(images, GLOBAL_SIZE, GLOBAL_SCALE, generator)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = self.modules["decoder"](self.backbone.train()(as_input(crops)))  # (B, 784)
        target = ((images - FASHION_MEAN) / FASHION_STD).flatten(1)  # (B, 784)
        loss = (drawn.float() - target).square().mean()
        self.descend(loss, self.modules.parameters())
        return loss.item()


class Dino(Pretraining):
    """Student and momentum teacher see crops of one image; the student's outputs are to match the teacher's."""

    def __init__(self, args):
        super().__init__(args)
        backbone = self.modules.pop("backbone")
        head = Head(backbone.embed_dim, 512, 128, args.prototypes)
        self.student = nn.ModuleDict({"backbone": backbone, "head": head})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.modules.update({"student": self.student, "teacher": self.teacher})
        self.modules.register_buffer("centre", torch.zeros(args.prototypes))
        self.backbone = self.teacher["backbone"]  # the one to keep
        self.finish(list(self.student.parameters()))

    def step(self, images, progress, generator):
        """One update on images (B, 1, 28, 28); progress of the whole run in 0..1. Returns the loss."""
        args = self.args
        self.set_rates(progress)
        wide = torch.cat([random_crops(images, GLOBAL_SIZE, GLOBAL_SCALE, generator) for _ in range(2)])
        narrow = torch.cat([random_crops(images, LOCAL_SIZE, LOCAL_SCALE, generator) for _ in range(args.local_crops)])
        with torch.autocast("cpu", torch.bfloat16):
            tokens = torch.cat([self.student["backbone"](as_input(crops)) for crops in (wide, narrow)])
            student = self.student["head"](tokens)
            with torch.no_grad():
                teacher = self.teacher["head"](self.teacher["backbone"](as_input(wide)))
        student = student.float().unflatten(0, (-1, len(images)))  # (2 + local crops, B, P)
        teacher = teacher.float().unflatten(0, (2, len(images)))  # (2, B, P)
        loss = dino_loss(student, teacher, self.modules.centre)
        warming = progress * args.epochs < args.warmup_epochs  # the prototypes stand still at first, as in the paper
        self.descend(loss, self.student.parameters(), still=[self.student["head"].prototypes] if warming else ())
        with torch.no_grad():
            self.modules.centre.lerp_(teacher.mean(dim=(0, 1)), 1 - CENTRE_MOMENTUM)
            weight = 1 - cosine(args.teacher_momentum, 1.0, progress)
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), weight)
        return loss.item()


OBJECTIVES = {"reconstruction": Reconstruction, "dino": Dino}


def recipe(args):
    return {key: value for key, value in vars(args).items() if key not in ("source", "output")}
