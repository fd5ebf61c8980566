"""Pretrain the demo backbone without labels on Fashion-MNIST's 60,000 training images.

    python scripts/demo/make_demo_backbone.py --source /usr/share/datasets/fashion-mnist

`--objective reconstruction` (the default, which made the embedded weights): from the class token of a random crop, a
linear decoder draws the whole image. `--objective dino`: multi-crop self-distillation with a
momentum teacher, centring and sharpening (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
ICCV 2021). On two CPU cores DINO is still below raw pixels after an hour; MODEL_CARD.md beside the weights has the
numbers of both. An interrupted run goes on from its last whole epoch when the same command is started again. Labels are
read only after an epoch, to print the k-NN and linear-probe accuracy.
"""

import argparse
import copy
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn
from torch import nn
from tqdm import tqdm

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_selection.common.errors import UserError, run
from data_selection.common.files import atomic_write
from data_selection.embedding.backbones import DEMO_WEIGHTS, build_model
from data_selection.images.dataset_files import find_idx, read_idx
from data_selection.images.pools import FASHION_MEAN, FASHION_STD, load_demo
from data_selection.judging.evaluation import knn_accuracy, probe_accuracy

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


@torch.inference_mode()
def embed(backbone, images):
    """Class-token features (N, D) float32 of uint8 images (N, 28, 28), no augmentation."""
    backbone.eval()
    blocks = torch.as_tensor(images).split(500)
    return torch.cat([backbone(as_input(block[:, None].float() / 255)) for block in blocks])


def judge(backbone):
    """20-NN and linear-probe accuracy, percent, on the demo pool: 10,000 training labels, 2,000 test images."""
    demo = load_demo()
    features = [embed(backbone, demo[f"{split}_images"]) for split in ("train", "test")]
    labels = [torch.as_tensor(demo[f"{split}_labels"]).long() for split in ("train", "test")]
    return knn_accuracy(features[0], labels[0], features[1], labels[1], k=20), probe_accuracy(
        features[0], labels[0], features[1], labels[1]
    )


def save_backbone(path, pretraining):
    """The backbone as float16 safetensors; its metadata repeats the recipe."""
    from safetensors.torch import save

    weights = {name: value.half().contiguous() for name, value in pretraining.backbone.state_dict().items()}
    metadata = {
        "recipe": str(recipe(pretraining.args)),
        "seconds": f"{pretraining.seconds:.0f}",
        "torch": torch.__version__,
    }
    with atomic_write(path) as handle:
        handle.write(save(weights, metadata))


def train(pretraining, images, partial):
    """Run the remaining epochs; after each, the whole state is written to `partial`."""
    args = pretraining.args
    steps = len(images) // args.batch_size
    for epoch in range(pretraining.epoch, args.epochs):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
        torch.manual_seed(args.seed * 1_000_003 + epoch)  # drop layers: a resumed run then equals an unbroken one
        order = torch.randperm(len(images), generator=generator)[: steps * args.batch_size].view(steps, -1)
        start, losses = time.monotonic(), []
        bar = tqdm(order, desc=f"epoch {epoch + 1}/{args.epochs}", disable=None, unit="step")
        for i, rows in enumerate(bar):
            batch = images[rows][:, None].float() / 255
            losses.append(pretraining.step(batch, (epoch + i / steps) / args.epochs, generator))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"loss {losses[-1]} at epoch {epoch}, step {i}: lower --lr")
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
        pretraining.epoch, pretraining.seconds = epoch + 1, pretraining.seconds + time.monotonic() - start
        with atomic_write(partial) as handle:
            torch.save(pretraining.state(), handle)
        line = f"epoch {pretraining.epoch}  loss {np.mean(losses):.4f}  seconds {pretraining.seconds:.0f}"
        if pretraining.epoch % args.judge_interval == 0 or pretraining.epoch == args.epochs:
            line += "  20-NN {:.2f} %  linear probe {:.2f} %".format(*judge(pretraining.backbone))
        print(line, flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the original idx files")
    parser.add_argument("--output", type=Path, default=DEMO_WEIGHTS, help="file to write (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=16, help="passes over the 60,000 images (default: %(default)s)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="reconstruction", help="(default: %(default)s)")
    parser.add_argument("--warmup-epochs", type=float, default=0.3, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="at 256 images per step (default: %(default)s)")
    parser.add_argument("--prototypes", type=int, default=1024, help="dino: outputs of the head (default: %(default)s)")
    parser.add_argument("--local-crops", type=int, default=4, help="dino: 14 x 14 crops (default: %(default)s)")
    parser.add_argument("--teacher-momentum", type=float, default=0.99, help="dino: rises to 1 (default: %(default)s)")
    parser.add_argument("--drop-path", type=float, default=0.05, help="stochastic depth (default: %(default)s)")
    parser.add_argument("--judge-interval", type=int, default=1, help="epochs between readings (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    # The fused kernel is 1.4 times slower here: its CPU backward is written for long sequences, not for 17 tokens.
    set_fused_attn(False)
    images = torch.from_numpy(read_idx(find_idx(args.source, "train-images-idx3-ubyte")))
    with torch.random.fork_rng():  # initialisation and drop layers take no generator: keep the caller's state
        torch.manual_seed(args.seed)
        pretraining = OBJECTIVES[args.objective](args)
        partial = args.output.with_suffix(".partial.pth")
        if partial.exists():
            pretraining.load(torch.load(partial, weights_only=True))
            print(f"going on after epoch {pretraining.epoch} of {partial}")
        train(pretraining, images, partial)
    save_backbone(args.output, pretraining)
    partial.unlink()
    print(f"wrote {args.output}: {args.epochs} epochs in {pretraining.seconds / 60:.0f} minutes")


if __name__ == "__main__":
    sys.exit(run(main))
