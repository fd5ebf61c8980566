"""The tensors of the pretended GPU (pretend_cuda.py), and what an operation on them is checked for and counted as."""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(f"{ROOT / folder}/" for folder in ("data_selection", "deit"))
GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
UNKNOWN_SIZE = (  # the host waits for the size of the result
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount,
    aten.equal, aten._linalg_eigh, aten._linalg_svd, aten.linalg_lstsq, aten.multinomial,
)  # fmt: skip
SCALARS_TOO = (aten.where, aten.masked_fill, aten.masked_fill_, aten.fill_, aten.lerp, aten.lerp_, aten.clamp)
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot, aten.addmv)


class DeviceFault(RuntimeError):
    """What CUDA would have refused."""


class Card:
    """What happened on the GPU: where the host waited for it, what was launched, what was refused."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.waits, self.launches = Counter(), Counter()
        self.loose = Counter()  # sums of which a GPU leaves the order open: the last bits are another time others
        self.faults = []
        self.flying = []  # (host tensor, its values) of copies that nobody has waited for
        self.pinned = []  # kept, or another tensor would get the address
        self.generators = set()

    def wait(self, kind):
        self.waits[kind, place()] += 1
        self.land(self.flying)

    def land(self, copies):
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            for host, values in copies:
                host.copy_(values)
        landed = {id(copy) for copy in copies}
        self.flying = [copy for copy in self.flying if id(copy) not in landed]

    def refuse(self, func, why):
        self.faults.append(f"{place()}: {func}: {why}")
        raise DeviceFault(f"{func}: {why}")


card = Card()


def place():
    """The line of the project that is being executed."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}" if frame else "elsewhere"


class OnCard(torch.Tensor):
    """A tensor that is on the GPU for everybody who asks; its values are in `values`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            layout=values.layout, device=GPU,
        )  # fmt: skip

    def __init__(self, values):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})

    def numpy(self, **_):
        card.refuse("numpy", "a tensor on cuda:0 has no array")

    def __array__(self, *_):
        return self.numpy()

    def tolist(self):
        card.wait("to host")
        return self.values.tolist()

    def __format__(self, how):
        return format(self.item(), how)

    def __deepcopy__(self, memo):
        copy = OnCard(self.values.clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        return memo.setdefault(id(self), copy)


def on_card(x):
    return isinstance(x, OnCard)


def plain(x):
    return x.values if on_card(x) else x


def loose(packet, values):
    """Whether an operation adds up floats in an order that a GPU leaves open; whole numbers are the same in any."""
    if packet in (aten.cumsum, aten.cumsum_):
        return fractions(values[0])
    if packet in (aten.index_add, aten.index_add_, aten.scatter_add, aten.scatter_add_):
        _, dim, index, source = values[:4]
        along = index.sort(0 if index.ndim == 1 else dim).values.diff(dim=0 if index.ndim == 1 else dim)
        return fractions(source) and bool((along == 0).any())  # two of them to one place
    if packet is aten.bincount:
        return len(values) > 1 and values[1] is not None and fractions(values[1])
    return packet in INDEXING and len(values) > 3 and values[3] is True and fractions(values[2])


def fractions(values):
    return values.is_floating_point() and not values.equal(values.round())


def operate(func, args, kwargs):
    """One operation below autograd: checked, counted, computed."""
    tensors = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
    ours = [x for x in tensors if on_card(x)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    if not ours and (asked is None or asked.type != "cuda"):
        return func(*args, **kwargs)
    if func is torch.ops.prim.device.default:
        return GPU
    if asked is not None:
        kwargs = kwargs | {"device": HOST}
    packet = func.overloadpacket
    if packet in COPIES:
        return copied(func, args, kwargs, asked or GPU)
    check(func, args, kwargs, ours, [x for x in tensors if not on_card(x)])
    values = tree_map(plain, args)
    if loose(packet, values):
        card.loose[place()] += 1
    if packet in (aten._softmax, aten._log_softmax) and values[2]:  # half in, float out: only CUDA has it
        values = (values[0].float(), values[1], False)
    kwargs = {name: plain_value for name, plain_value in tree_map(plain, kwargs).items() if name != "pin_memory"}
    out = func(*values, **kwargs)
    if not func.is_view and packet not in (aten.detach, aten._local_scalar_dense):
        card.launches[place()] += 1
    if packet is aten._local_scalar_dense or (asked is not None and asked.type == "cpu"):
        return out
    known = {id(x.values): x for x in ours}  # in place: the same tensor comes back
    return tree_map(lambda x: known.get(id(x)) if id(x) in known else OnCard(x) if torch.is_tensor(x) else x, out)


def copied(func, args, kwargs, target):
    """Copies from one device to the other, and conversions on the GPU."""
    packet = func.overloadpacket
    source = args[0] if packet is aten._to_copy else args[1]
    if packet is aten.copy_:
        target = GPU if on_card(args[0]) else HOST
    late = kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2])
    down, up = on_card(source) and target.type == "cpu", not on_card(source) and target.type == "cuda"
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    out = func(*tree_map(plain, args), **kwargs)
    card.launches[place()] += 1
    if up and source.numel() and not (late and pinned(source)) and source.dim():
        card.wait("from host")  # of memory that is not pinned the copy is taken at once, but the stream is waited for
    if down and source.numel():
        if not late:
            card.wait("to host")
        elif packet is aten._to_copy:
            card.flying.append((out, out.clone()))
            out.fill_(float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).max)
        else:
            card.flying.append((args[0], args[0].clone()))
            args[0].fill_(float("nan") if args[0].is_floating_point() else torch.iinfo(args[0].dtype).max)
    if packet is aten.copy_:
        return args[0]
    return OnCard(out) if target.type == "cuda" else out


def pinned(tensor):
    return tensor.untyped_storage()._cdata in {kept.untyped_storage()._cdata for kept in card.pinned}


def check(func, args, kwargs, ours, hosted):
    """Refuse what CUDA refuses; count what makes the host wait."""
    packet = func.overloadpacket
    if packet in INDEXING:
        return check_indices(func, args)
    if packet is aten._local_scalar_dense:
        return card.wait("item")
    if packet in UNKNOWN_SIZE or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
        card.wait("size")
    pointwise = torch.Tag.pointwise in func.tags or packet in SCALARS_TOO or "_foreach" in str(func)
    if ours and any(x.dim() or not pointwise for x in hosted):
        shapes = [tuple(x.shape) for x in hosted]
        card.refuse(func, f"Expected all tensors to be on the same device, but {shapes} are on the cpu")
    if ours and len(hosted) > 1:
        card.refuse(func, "too many numbers on the cpu beside tensors on cuda:0")
    changed = args[0] if func._schema.name.endswith("_") and args else kwargs.get("out")
    if ours and torch.is_tensor(changed) and not on_card(changed):
        card.refuse(func, "what is changed is on the cpu, the rest on cuda:0")
    if packet in PRODUCTS and not ours[0].dtype.is_floating_point:
        card.refuse(func, f"no product of {ours[0].dtype} on CUDA")
    generator = kwargs.get("generator")
    if generator is not None and generator._cdata not in card.generators:
        card.refuse(func, "expected a generator of cuda")
    return None


def check_indices(func, args):
    indices = [x for x in args[1] if x is not None]
    if not on_card(args[0]) and any(map(on_card, indices)):
        card.refuse(func, "indices on cuda:0 of a tensor on the cpu")
    values = args[2] if len(args) > 2 else None
    if values is not None and not on_card(values) and values.dim():
        card.refuse(func, "values on the cpu for a tensor on cuda:0")
    number = values is not None and values.numel() == 1  # becomes masked_fill, which waits for nobody
    for index in indices:
        if not on_card(index) and index.numel():
            card.wait("host index")
        if index.dtype in (torch.bool, torch.uint8) and not number:
            card.wait("mask")
