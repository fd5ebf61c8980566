"""The finetuning run: data, model and optimiser from the flags, then epochs, evaluations and checkpoints."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path

import timm.optim
import torch
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

from data_selection import distributed, pools
from data_selection.backbones import DEMO_WEIGHTS, build_model, load_weights
from data_selection.errors import UserError
from deit import checkpoints
from deit.datasets import Pipeline, choose_ids, open_images, prepare
from deit.draws import INIT, seed_drop_layers, seed_of, seeded
from deit.engine import FlatGradients, Learner, evaluate, train_one_epoch
from deit.losses import Criterion
from deit.meters import RunLog
from deit.mixing import Mixing
from deit.samplers import epoch_order, plan_epoch

REFERENCE_BATCH = 512  # --lr is for this many images per step


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a data set brings where no flag says otherwise."""

    model: str = "deit_small_patch16_224"
    input_size: int = 224
    mean: tuple = pools.IMAGENET_MEAN
    std: tuple = pools.IMAGENET_STD
    pretrained: Path | None = None  # used with that model alone


SMALL_GREY = Defaults("demo_vit", 28, (pools.FASHION_MEAN,) * 3, (pools.FASHION_STD,) * 3, DEMO_WEIGHTS)
DEFAULTS = {"DEMO": SMALL_GREY, "FASHIONMNIST": SMALL_GREY}  # by name without SUBSET; all others: Defaults()


def train(args):
    """Run the trainer with the Namespace of options.parse. Returns result.json's values (None on ranks above 0)."""
    with distributed.start(args.device) as world:
        return evaluate_only(args, world) if args.eval else finetune(args, world)


def finetune(args, world):
    name, defaults = resolve(args)
    if args.output_dir:
        checkpoints.check_folder(args.output_dir)
    log = RunLog(args.output_dir, world.is_main)
    train_pool, test_pool = open_images(name, args.data_path)
    ids = choose_ids(train_pool, args.subset_ids)
    global_batch = args.global_batch_size or args.batch_size * world.size
    settings = vars(args) | {"global_batch_size": global_batch, "train_ids": fingerprint(ids), "processes": world.size}
    resume, state = starting_point(args, settings, log)
    learner = build_learner(args, world, train_pool.classes, global_batch, log, pretrained=None if state else resume)
    done, best = args.start_epoch - 1, None
    if state is not None:
        done, best = checkpoints.restore(learner, state, resume, log)
    elif learner.scheduler is not None and done:
        learner.scheduler.step(done)
    pipeline = make_pipeline(args, defaults)
    common = {"cache": args.cache, "workers": args.num_workers, "pin_memory": args.pin_mem}
    train_data = prepare(train_pool, ids, pipeline, world.device, train=True, seed=args.seed, **common)
    test_data = prepare(test_pool, range(len(test_pool)), pipeline, world.device, train=False, **common)
    log.say(
        f"training on {len(ids)} of {len(train_pool)} images, {train_pool.classes} classes, {global_batch} per step on "
        f"{world.size} process{'es' if world.size > 1 else ''} ({world.device.type}), evaluating on {len(test_pool)}"
    )
    try:
        return run_epochs(learner, log, args, settings, train_data, test_data, train_pool.classes, done, best)
    finally:
        log.close()


def run_epochs(learner, log, args, settings, train_data, test_data, classes, done, best):
    """Epochs done+1 to the last; evaluations, checkpoints and the result."""
    world, global_batch = learner.world, settings["global_batch_size"]
    last = args.epochs + args.cooldown_epochs
    if done >= last:
        raise UserError(f"the checkpoint has {done} epochs and {last} are asked for: the run is finished")
    mixing = Mixing(
        args.mixup, args.cutmix, args.cutmix_minmax, args.mixup_prob, args.mixup_switch_prob, args.mixup_mode
    )  # fmt: skip
    save_interval = args.save_interval or args.eval_interval
    parameters = sum(parameter.numel() for parameter in learner.model.parameters() if parameter.requires_grad)
    score = {"batch": 3 * args.batch_size, "amp": learner.amp, "sharded": args.dist_eval}
    seconds, images, began = 0.0, 0, time.monotonic()
    for epoch in range(done + 1, last + 1):
        order = epoch_order(len(train_data), epoch, seed=args.seed, repeated=args.repeated_aug)
        steps = plan_epoch(order, global_batch, args.batch_size, world.rank, world.size)
        if epoch == done + 1:
            log.start(epoch, last, len(steps), settings)
        started, rate = time.monotonic(), max(group["lr"] for group in learner.optimizer.param_groups)
        loss = train_one_epoch(
            learner, train_data, steps, epoch,
            classes=classes, seed=args.seed, mixing=mixing, clip_grad=args.clip_grad, on_step=log.step,
        )  # fmt: skip
        seconds, images = seconds + time.monotonic() - started, images + len(order)
        if learner.scheduler is not None:
            learner.scheduler.step(epoch)
        line, names = {"train_lr": rate, "train_loss": loss}, []
        if epoch % args.eval_interval == 0 or epoch == last:
            test = evaluate(learner.model, test_data, world, **score)
            line |= {f"test_{key}": value for key, value in test.items()}
            if best is None or test["acc1"] > best[0]:
                best, names = (test["acc1"], epoch), ["best_checkpoint.pth"]
        if epoch % save_interval == 0 or epoch == last:
            names.append("checkpoint.pth")
        log.record(line | {"epoch": epoch, "n_parameters": parameters}, best)
        if log.folder and names:
            checkpoints.save([log.folder / file for file in names], learner, epoch, best, settings)
    result = {
        "last": {"epoch": last, **test},
        "best": {"epoch": best[1], "acc1": best[0], "note": "chosen on the evaluation set"},
        "ema": None if learner.ema is None else evaluate(ema_model(learner.ema, world), test_data, world, **score),
        "epochs_run": last - done, "train_seconds": seconds, "seconds": time.monotonic() - began,
        "images_per_second": images / seconds, "processes": world.size, "global_batch_size": global_batch,
    }  # fmt: skip
    log.close()
    log.result(result)
    where = f"; wrote checkpoint.pth, best_checkpoint.pth, log.txt and result.json in {log.folder}" if log.folder else ""
    log.say(
        f"top-1 after the last epoch ({last}): {test['acc1']:.2f} %; best {best[0]:.2f} % at epoch {best[1]}, chosen on "
        f"the evaluation set{where}"
    )
    return result if world.is_main else None


def evaluate_only(args, world):
    """Evaluate the weights of --resume or --finetune and print the accuracy."""
    name, defaults = resolve(args)
    log = RunLog("", world.is_main)
    train_pool, test_pool = open_images(name, args.data_path)
    model = build(args, train_pool.classes, log)
    load_weights(model, args.resume or args.finetune, checkpoint_key="model", log=log.say)
    model.to(world.device)
    data = prepare(
        test_pool, range(len(test_pool)), make_pipeline(args, defaults), world.device, train=False,
        cache=args.cache, workers=args.num_workers, pin_memory=args.pin_mem,
    )  # fmt: skip
    dtype = autocast_type(args.amp, world.device)
    test = evaluate(model, data, world, batch=3 * args.batch_size, amp=dtype, sharded=args.dist_eval)
    log.say(f"* Acc@1 {test['acc1']:.3f} Acc@5 {test['acc5']:.3f} loss {test['loss']:.3f}")
    log.say(f"Accuracy of the network on the {len(test_pool)} test images: {test['acc1']:.1f}%")
    return test if world.is_main else None


def resolve(args):
    """Fill in the flags whose defaults a data set brings. Returns (name without SUBSET, Defaults)."""
    name = args.data_set.removesuffix("SUBSET")
    defaults = DEFAULTS.get(name, Defaults())
    if args.model not in (None, defaults.model):  # another model brings neither that size nor those weights
        defaults = dataclasses.replace(defaults, model=args.model, input_size=Defaults.input_size, pretrained=None)
    args.model, args.input_size = defaults.model, args.input_size or defaults.input_size
    return name, defaults


def make_pipeline(args, defaults):
    return Pipeline(
        args.input_size, defaults.mean, defaults.std, args.train_interpolation, args.color_jitter, args.aa,
        args.reprob, args.remode, args.recount,
    )  # fmt: skip


def starting_point(args, settings, log):
    """(file, training state): the file to start from, "" for none, and its state where it is one to continue.

    --auto-resume's checkpoint comes before --resume and --finetune: it is a continuation of what they started.
    """
    source = args.resume
    if args.auto_resume and (Path(args.output_dir) / "checkpoint.pth").exists():
        source = str(Path(args.output_dir) / "checkpoint.pth")
    if not source:
        return args.finetune, None
    state = checkpoints.training_state(source)
    if state is None:
        log.say(f"{source} holds no training state: taken as pretrained weights, as with --finetune")
        return source, None
    if args.start_epoch != 1:
        raise UserError(f"--start_epoch {args.start_epoch}: {source} says itself where it continues; leave the flag out")
    checkpoints.check_same_recipe(state.get("args", {}), settings, source)
    log.say(f"continuing {source} after epoch {state['epoch']}")
    return source, state


def build(args, classes, log):
    """The model of the flags on the CPU with fresh weights, the same on every process."""
    if not classes:
        raise UserError(f"--data-set {args.data_set} has no labels to train on")
    log.say(f"Creating model: {args.model}")
    with seeded(seed_of(args.seed, INIT)):
        model = build_model(args.model, classes, drop_rate=args.drop, drop_path_rate=args.drop_path)
    try:  # wrong sizes show here instead of after the data is decoded
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, args.input_size, args.input_size))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"--model {args.model} does not take --input-size {args.input_size}: {str(error).splitlines()[0]}"
        ) from None
    return model


def build_learner(args, world, classes, global_batch, log, pretrained):
    """Model, optimiser, schedule, EMA and loss. pretrained: a file, "" for the data set's default, None: none now."""
    model = build(args, classes, log)
    source = pretrained or (resolve(args)[1].pretrained if pretrained == "" else None)
    if source and source != "none":
        checkpoints.load_pretrained(model, source, log.say)
        log.say(f"pretrained weights: {source}")
    elif pretrained is not None:
        log.say("no pretrained weights (--finetune FILE gives them): training starts from random ones")
    log.say(f"number of params: {sum(p.numel() for p in model.parameters() if p.requires_grad)}")
    criterion = Criterion(args.smoothing)
    if args.distillation_type != "none":
        criterion = distillation(args, model, classes, world, log)
    model.to(world.device)
    ema = None
    if args.model_ema:  # before the drop layers change, after the weights are there
        ema = ModelEmaV3(model, args.model_ema_decay, device="cpu" if args.model_ema_force_cpu else None)
    draws = seed_drop_layers(model, args.seed)
    optimizer = make_optimizer(args, model, args.lr * global_batch / REFERENCE_BATCH)
    amp = autocast_type(args.amp, world.device)
    return Learner(
        model, optimizer, make_scheduler(args, optimizer),
        torch.amp.GradScaler(world.device.type, enabled=amp is torch.float16), ema, draws,
        FlatGradients(model.parameters()), criterion, amp, world,
    )  # fmt: skip


def distillation(args, model, classes, world, log):
    """The Criterion with its teacher; the student must have a distillation head."""
    if not hasattr(model, "set_distilled_training"):
        raise UserError(f"--distillation-type needs a distilled --model (deit_small_distilled_patch16_224), not {args.model}")
    model.set_distilled_training(True)
    teacher = build_model(args.teacher_model, classes)
    load_weights(teacher, args.teacher_path, checkpoint_key="model", log=log.say)
    teacher.to(world.device).eval().requires_grad_(False)
    return Criterion(args.smoothing, teacher, args.distillation_type, args.distillation_alpha, args.distillation_tau)


def make_optimizer(args, model, lr):
    """timm's optimiser of --opt; weight decay spares what has one dimension, and token and position embeddings."""
    try:
        info = timm.optim.get_optimizer_info(args.opt.lower())
    except ValueError:
        known = ", ".join(timm.optim.list_optimizers())
        raise UserError(f"unknown --opt {args.opt!r}: use one of {known}") from None
    settings = {"momentum": args.momentum} | ({"eps": args.opt_eps} if info.has_eps else {})
    if args.opt_betas:
        if not info.has_betas:
            raise UserError(f"--opt-betas does nothing with --opt {args.opt}: leave it out")
        settings["betas"] = tuple(args.opt_betas)
    return timm.optim.create_optimizer_v2(
        model, args.opt.lower(), lr=lr, weight_decay=args.weight_decay, layer_decay=args.layer_decay, **settings
    )


def make_scheduler(args, optimizer):
    """timm's schedule of --sched, a function of the epochs done alone; None where the rate stays.

    Epoch e (from 1) uses the value at e - 1, as BiLAF's trainer does; ActiveFT's spends two epochs at the first value.
    """
    noise = None
    if args.lr_noise:
        noise = [fraction * args.epochs for fraction in args.lr_noise]
        noise = noise if len(noise) > 1 else noise[0]
    scheduler, _ = create_scheduler_v2(
        optimizer, args.sched, num_epochs=args.epochs, decay_epochs=args.decay_epochs, decay_rate=args.decay_rate,
        min_lr=args.min_lr, warmup_lr=args.warmup_lr, warmup_epochs=args.warmup_epochs,
        noise=noise, noise_pct=args.lr_noise_pct, noise_std=args.lr_noise_std,
    )  # fmt: skip
    return scheduler


def autocast_type(name, device):
    """torch dtype of --amp, None for full precision; auto: on a GPU bf16 where it has it, else fp16; on a CPU none."""
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)


def ema_model(ema, world):
    return ema.module.to(world.device)


def fingerprint(ids):
    """Hex digest of the training ids in order: a continued run must have the same."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
