"""The finetuning run: epochs, evaluations and checkpoints."""

import hashlib
import json
import time
from pathlib import Path

from data_selection import distributed
from data_selection.backbones import load_weights, local_file
from data_selection.errors import UserError
from deit import checkpoints
from deit.building import autocast_type, build, build_learner, make_pipeline, resolve
from deit.datasets import prepare
from deit.engine import evaluate, train_one_epoch
from deit.meters import RunLog
from deit.mixing import Mixing
from deit.samplers import epoch_order, plan_epoch
from deit.sources import check_same_pool, choose_ids, open_images


def train(args):
    """Run the trainer with the Namespace of options.parse. Returns result.json's values (None on ranks above 0)."""
    with distributed.start(args.device) as world:
        return evaluate_only(args, world) if args.eval else finetune(args, world)


def finetune(args, world):
    name, defaults = resolve(args)
    if args.output_dir:
        checkpoints.check_folder(args.output_dir)
    log = RunLog(args.output_dir, world.is_main)
    train_pool, test_pool, ids = distributed.on_main_first(world, lambda: open_data(args, name, log))
    global_batch = args.global_batch_size or args.batch_size * world.size
    settings = vars(args) | {"global_batch_size": global_batch, "train_ids": fingerprint(ids), "processes": world.size}
    source, state = starting_point(args, settings, defaults.pretrained, log)
    if state is not None and finished(args, source, state["epoch"], log):
        return None
    learner = build_learner(args, world, train_pool.classes, global_batch, log, None if state else source)
    done, best = args.start_epoch - 1, None
    if learner.scheduler is not None and done:
        learner.scheduler.step(done)
    if state is not None:
        done, best = checkpoints.restore(learner, state, source, log.say)
    elif args.output_dir and (Path(args.output_dir) / "checkpoint.pth").exists():
        log.say(f"{args.output_dir} holds an earlier run: its files are replaced (--auto-resume continues it)")
    pipeline = make_pipeline(args, defaults)
    common = {"cache": args.cache, "workers": args.num_workers, "pin_memory": args.pin_mem}
    train_data = prepare(train_pool, ids, pipeline, world.device, train=True, seed=args.seed, **common)
    test_data = prepare(test_pool, range(len(test_pool)), pipeline, world.device, train=False, **common)
    log.say(
        f"training on {len(ids)} of {len(train_pool)} images, {train_pool.classes} classes, {global_batch} per step on "
        f"{world.size} process{'es' if world.size > 1 else ''} ({world.device.type}), evaluating on {len(test_pool)}"
    )
    log.keep(done if state is not None else 0)
    try:
        return run_epochs(learner, log, args, settings, train_data, test_data, train_pool.classes, done, best)
    finally:
        log.close()


def run_epochs(learner, log, args, settings, train_data, test_data, classes, done, best):
    """Epochs done+1 to the last; evaluations, checkpoints and the result."""
    world, global_batch = learner.world, settings["global_batch_size"]
    last = args.epochs + args.cooldown_epochs
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
    ema = None if learner.ema is None else evaluate(learner.ema.module.to(world.device), test_data, world, **score)
    result = {
        "last": {"epoch": last, **test},
        "best": {"epoch": best[1], "acc1": best[0], "note": "chosen on the evaluation set"},
        "ema": ema,
        "epochs_run": last - done, "train_seconds": seconds, "seconds": time.monotonic() - began,
        "images_per_second": images / seconds, "processes": world.size, "global_batch_size": global_batch,
    }  # fmt: skip
    log.close()
    log.result(result)
    where = (
        f"; wrote checkpoint.pth, best_checkpoint.pth, log.txt and result.json in {log.folder}" if log.folder else ""
    )
    log.say(
        f"top-1 after the last epoch ({last}): {test['acc1']:.2f} %; best {best[0]:.2f} % at epoch {best[1]}, "
        f"chosen on the evaluation set{where}"
    )
    return result if world.is_main else None


def evaluate_only(args, world):
    """Evaluate the weights of --resume or --finetune and print the accuracy."""
    name, defaults = resolve(args)
    log = RunLog("", world.is_main)
    train_pool, test_pool = distributed.on_main_first(world, lambda: open_images(name, args.data_path))
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


def starting_point(args, settings, pretrained, log):
    """(file, training state): the file to start from (`none`: random weights), and its state where it is to continue.

    --auto-resume's checkpoint comes before --resume and --finetune: it is a continuation of what they started.
    """
    source = own_checkpoint(args) or args.resume
    if not source:
        weights = args.finetune or pretrained
        if weights is None:
            raise UserError(
                f"--model {args.model} on --data-set {args.data_set} has no pretrained weights of its own: give them "
                "with --finetune FILE or --resume FILE, or say --finetune none to train from random ones"
            )
        return weights, None
    source = str(local_file(source, log.say, "--resume"))
    state = checkpoints.training_state(source)
    if state is None:
        log.say(f"{source} holds no training state: taken as pretrained weights, as with --finetune")
        return source, None
    if args.start_epoch != 1:
        raise UserError(
            f"--start_epoch {args.start_epoch}: {source} says itself where it continues; leave the flag out"
        )
    checkpoints.check_same_recipe(state.get("args", {}), settings, source)
    log.say(f"continuing {source} after epoch {state['epoch']}")
    return source, state


def own_checkpoint(args):
    """The checkpoint that --auto-resume continues, or "" where there is none."""
    path = Path(args.output_dir) / "checkpoint.pth"
    return str(path) if args.auto_resume and path.exists() else ""


def finished(args, source, done, log):
    """Whether --auto-resume finds its run finished, which is no mistake. Raises UserError where --resume does."""
    last = args.epochs + args.cooldown_epochs
    if done < last:
        return False
    told = f"the checkpoint has {done} epochs and {last} are asked for: the run is finished"
    if source != own_checkpoint(args):
        raise UserError(f"{told} ({source})")
    result = Path(args.output_dir) / "result.json"
    log.say(f"{source}: {told}" + (f"; its result is in {result}" if result.exists() else ""))
    return True


def open_data(args, name, log):
    """(training pool, evaluation pool, pool indices to train on), the subset file checked against its pool."""
    train_pool, test_pool = open_images(name, args.data_path)
    if args.subset_ids:
        check_same_pool(args.subset_ids, train_pool, name, log.say)
    return train_pool, test_pool, choose_ids(train_pool, args.subset_ids)


def fingerprint(ids):
    """Hex digest of the training ids in order: a continued run must have the same."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
