"""Pretrain the demo backbone without labels on Fashion-MNIST's 60,000 training images: DINO plus reconstruction.

    python scripts/make_demo_backbone.py --source /usr/share/datasets/fashion-mnist

Multi-crop, a momentum teacher, centring and sharpening as in "Emerging Properties in Self-Supervised Vision
Transformers" (Caron et al., ICCV 2021), sized for two CPU cores: 28 x 28 images, patches of 7, small heads. Besides, a
linear decoder predicts the whole unaugmented image from the class token of each crop: DINO alone learns too slowly for
an hour of CPU time (data_selection/demo/MODEL_CARD.md has its numbers; --reconstruction 0 is DINO alone).
An interrupted run goes on from its last whole epoch when the same command is started again. Labels are read only
after training, to print the k-NN and linear-probe accuracy that the model card reports.
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
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.backbones import DEMO_WEIGHTS, build_model
from data_selection.errors import run
from data_selection.files import atomic_write
from data_selection.pools import FASHION_MEAN, FASHION_STD, find_idx, load_demo, read_idx

GLOBAL_SIZE, LOCAL_SIZE = 28, 14  # pixels: 16 and 4 patches of 7 x 7
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


class Dino:
    """Student, teacher, centre, optimiser and epoch: what a run is, and what a checkpoint holds."""

    def __init__(self, args):
        self.args, self.epoch, self.seconds = args, 0, 0.0
        with torch.random.fork_rng():  # initialisation has no generator argument; keep the caller's state
            torch.manual_seed(args.seed)
            backbone = build_model("demo_vit", num_classes=0, drop_path_rate=args.drop_path)
            head = Head(backbone.embed_dim, 512, 128, args.prototypes)
            decoder = nn.Linear(backbone.embed_dim, GLOBAL_SIZE**2)
        self.student = nn.ModuleDict({"backbone": backbone, "head": head})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.student["decoder"] = decoder  # the teacher has none: its targets are DINO's
        self.centre = torch.zeros(args.prototypes)
        decayed = [p for p in self.student.parameters() if p.ndim > 1]
        plain = [p for p in self.student.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], fused=True)

    def state(self):
        return {
            "student": self.student.state_dict(), "teacher": self.teacher.state_dict(), "centre": self.centre,
            "optimizer": self.optimizer.state_dict(), "epoch": self.epoch, "seconds": self.seconds,
            "recipe": recipe(self.args),
        }  # fmt: skip

    def load(self, state):
        if state["recipe"] != recipe(self.args):
            raise ValueError(f"the unfinished run was started with {state['recipe']}, not {recipe(self.args)}")
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.centre, self.epoch, self.seconds = state["centre"], state["epoch"], state["seconds"]

    def followed(self):
        """The student's parameters that the teacher has too, in its order."""
        return [p for part in ("backbone", "head") for p in self.student[part].parameters()]

    def step(self, images, progress, generator):
        """One update on images (B, 1, 28, 28); progress of the whole run in 0..1. Returns the loss."""
        args = self.args
        warmup = min(1.0, progress * args.epochs / args.warmup_epochs)
        rate = args.lr * args.batch_size / 256 * warmup * cosine(1.0, 0.002, progress)
        self.optimizer.param_groups[0]["weight_decay"] = cosine(0.04, 0.2, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        wide = torch.cat([random_crops(images, GLOBAL_SIZE, (0.5, 1.0), generator) for _ in range(2)])
        narrow = torch.cat([random_crops(images, LOCAL_SIZE, (0.2, 0.5), generator) for _ in range(args.local_crops)])
        with torch.autocast("cpu", torch.bfloat16):
            tokens = [self.student["backbone"](as_input(crops)) for crops in (wide, narrow)]
            tokens = torch.cat(tokens)  # (crops * B, dim)
            student = self.student["head"](tokens)
            drawn = self.student["decoder"](tokens)  # (crops * B, 784)
            with torch.no_grad():
                teacher = self.teacher["head"](self.teacher["backbone"](as_input(wide)))
        student = student.float().unflatten(0, (-1, len(images)))  # (2 + local crops, B, P)
        teacher = teacher.float().unflatten(0, (2, len(images)))  # (2, B, P)
        target = ((images - FASHION_MEAN) / FASHION_STD).flatten(1)  # (B, 784), the whole image, not augmented
        error = (drawn.float().unflatten(0, (-1, len(images))) - target).square().mean()
        loss = dino_loss(student, teacher, self.centre) + args.reconstruction * error
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if progress * args.epochs < args.warmup_epochs:  # the prototypes stand still at first, as in the paper
            self.student["head"].prototypes.grad = None
        nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimizer.step()
        with torch.no_grad():
            self.centre.lerp_(teacher.mean(dim=(0, 1)), 1 - CENTRE_MOMENTUM)
            weight = 1 - cosine(args.teacher_momentum, 1.0, progress)
            torch._foreach_lerp_(list(self.teacher.parameters()), self.followed(), weight)
        return loss.item()


def recipe(args):
    return {key: value for key, value in vars(args).items() if key not in ("source", "output")}


@torch.inference_mode()
def embed(backbone, images):
    """Class-token features (N, D) float32 of uint8 images (N, 28, 28), no augmentation."""
    blocks = torch.as_tensor(images).split(500)
    return torch.cat([backbone(as_input(block[:, None].float() / 255)) for block in blocks])


def judge(backbone):
    """20-NN and linear-probe accuracy, percent, on the demo pool: 10,000 training labels, 2,000 test images."""
    from data_selection.evaluation import knn_accuracy, probe_accuracy

    demo = load_demo()
    features = [embed(backbone, demo[f"{split}_images"]) for split in ("train", "test")]
    labels = [torch.as_tensor(demo[f"{split}_labels"]).long() for split in ("train", "test")]
    return knn_accuracy(features[0], labels[0], features[1], labels[1], k=20), probe_accuracy(
        features[0], labels[0], features[1], labels[1]
    )


def save_backbone(path, dino):
    """The teacher's backbone as float16 safetensors; its metadata repeats the recipe."""
    from safetensors.torch import save

    weights = {name: value.half().contiguous() for name, value in dino.teacher["backbone"].state_dict().items()}
    metadata = {"recipe": str(recipe(dino.args)), "seconds": f"{dino.seconds:.0f}", "torch": torch.__version__}
    with atomic_write(path) as handle:
        handle.write(save(weights, metadata))


def train(dino, images, partial):
    """Run the remaining epochs; after each, the whole state is written to `partial`."""
    args = dino.args
    steps = len(images) // args.batch_size
    for epoch in range(dino.epoch, args.epochs):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=generator)[: steps * args.batch_size].view(steps, -1)
        start, losses = time.monotonic(), []
        bar = tqdm(order, desc=f"epoch {epoch + 1}/{args.epochs}", disable=None, unit="step")
        for i, rows in enumerate(bar):
            batch = images[rows][:, None].float() / 255
            losses.append(dino.step(batch, (epoch + i / steps) / args.epochs, generator))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"loss {losses[-1]} at epoch {epoch}, step {i}: lower --lr")
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
        dino.epoch, dino.seconds = epoch + 1, dino.seconds + time.monotonic() - start
        with atomic_write(partial) as handle:
            torch.save(dino.state(), handle)
        line = f"epoch {dino.epoch}  loss {np.mean(losses):.4f}  seconds {dino.seconds:.0f}"
        if dino.epoch % args.judge_interval == 0 or dino.epoch == args.epochs:
            line += "  20-NN {:.2f} %  linear probe {:.2f} %".format(*judge(dino.teacher["backbone"]))
        print(line, flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the original idx files")
    parser.add_argument("--output", type=Path, default=DEMO_WEIGHTS, help="file to write (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=9, help="passes over the 60,000 images (default: %(default)s)")
    parser.add_argument(
        "--reconstruction", type=float, default=5.0, help="weight of the pixel error (default: %(default)s)"
    )
    parser.add_argument("--warmup-epochs", type=float, default=0.3, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="at 256 images per step (default: %(default)s)")
    parser.add_argument("--prototypes", type=int, default=1024, help="outputs of the head (default: %(default)s)")
    parser.add_argument("--local-crops", type=int, default=4, help="14 x 14 crops per image (default: %(default)s)")
    parser.add_argument("--teacher-momentum", type=float, default=0.99, help="rises to 1 (default: %(default)s)")
    parser.add_argument("--drop-path", type=float, default=0.05, help="of the student (default: %(default)s)")
    parser.add_argument("--judge-interval", type=int, default=1, help="epochs between readings (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    # The fused kernel is 1.4 times slower here: its CPU backward is written for long sequences, not for 17 tokens.
    set_fused_attn(False)
    images = torch.from_numpy(read_idx(find_idx(args.source, "train-images-idx3-ubyte")))
    dino = Dino(args)
    partial = args.output.with_suffix(".partial.pth")
    if partial.exists():
        dino.load(torch.load(partial, weights_only=True))
        print(f"going on after epoch {dino.epoch} of {partial}")
    train(dino, images, partial)
    save_backbone(args.output, dino)
    partial.unlink()
    print(f"wrote {args.output}: {args.epochs} epochs in {dino.seconds / 60:.0f} minutes")


if __name__ == "__main__":
    sys.exit(run(main))
