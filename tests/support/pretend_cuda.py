"""A GPU that is not there: tensors that say cuda:0, compute on the CPU, and refuse what CUDA refuses.

    with pretended() as card:
        select_activeft(features, 50, device="cuda")
    card.waits, card.launches   # Counters of ("kind", "file:line") and of "file:line"

Copies to the host that nobody waits for arrive late. Not covered: nccl, fused attention, rounding, memory, speed, and
most races between streams.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.support.pretend_backward import backward
from tests.support.pretend_tensors import GPU, OnCard, aten, card, on_card, operate, place

FREE = 70 << 30  # bytes


class Below(TorchDispatchMode):
    """Operations of which no argument is on the GPU: factories, and copies to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})


def numbered(x):
    """`cuda` as cuda:0: nothing here knows a current device."""
    return GPU if x == "cuda" or (isinstance(x, torch.device) and x == torch.device("cuda")) else x


class Above(TorchFunctionMode):
    """Calls that would ask the driver before they reach the dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {name: numbered(value) if name == "device" else value for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.to:
            args = tuple(map(numbered, args))
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            del kwargs["device"]
            return func(*args, **kwargs).to(GPU)
        if func is torch.Tensor.new_tensor and on_card(args[0]):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(GPU)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and on_card(args[0]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(x) if isinstance(x, list) else x for x in index), *args[2:])
        if func is torch.Tensor.backward and on_card(args[0]):
            return backward(args[0])
        if func is torch.nn.functional.scaled_dot_product_attention and on_card(args[0]):
            return attention(*args, **kwargs)
        return func(*args, **kwargs)


def attention(*args, enable_gqa=False, **kwargs):
    """By matrix products: which fused kernel to take would be asked of the driver."""
    if torch.is_autocast_enabled("cuda"):
        args = [x.to(torch.get_autocast_dtype("cuda")) for x in args[:3]] + list(args[3:])
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    return aten._scaled_dot_product_attention_math(*args, **kwargs)[0]


class Event:
    """Knows the copies that were on their way when it was recorded."""

    def __init__(self, *_, **__):
        self.copies = []

    def record(self, _stream=None):
        self.copies = list(card.flying)

    def synchronize(self):
        card.waits["event", place()] += 1
        card.land([copy for copy in self.copies if any(copy is flying for flying in card.flying)])


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        new = super().__new__(cls, "cpu")
        if torch.device(device).type == "cuda":
            card.generators.add(new._cdata)  # the dispatcher wraps it anew
        return new


def pin_memory(tensor, _device=None):
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        card.pinned.append(tensor.clone())
    return card.pinned[-1]


@contextlib.contextmanager
def pretended(free=FREE, bf16=True):
    """Within the block torch has one GPU with `free` bytes. Yields its Card, the one for all blocks, cleared."""
    card.clear()
    torch._C._ensureCUDADeviceGuardSet()
    stream = SimpleNamespace(device=GPU, wait_stream=lambda other: None)
    said = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "_lazy_init": lambda: None, "is_initialized": lambda: True, "set_device": lambda device: None,
        "mem_get_info": lambda device=None: (free, free), "current_stream": lambda device=None: stream,
        "is_bf16_supported": lambda including_emulation=True: bf16, "empty_cache": lambda: None,
        "synchronize": lambda device=None: card.wait("event"), "get_device_name": lambda device=None: "pretended",
        "get_device_capability": lambda device=None: (8, 0), "Event": Event,
    }  # fmt: skip
    inference = torch.autograd.grad_mode.inference_mode
    with contextlib.ExitStack() as stack:
        for name, value in said.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", pin_memory))
        kinds = [*optimizer._foreach_supported_types, OnCard]
        stack.enter_context(mock.patch.object(optimizer, "_foreach_supported_types", kinds))
        # tensors made in inference mode take no views of wrappers: no gradients will do
        stack.enter_context(mock.patch.object(inference, "__enter__", lambda self: enter(self)))
        stack.enter_context(mock.patch.object(inference, "__exit__", lambda self, *_: leave(self)))
        # else module.to() would change the wrapper's data, and lose it
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # the CPU has none of its operations
        stack.enter_context(Below())
        stack.enter_context(Above())
        yield card


def enter(mode):
    mode.__dict__.setdefault("before", []).append(torch.is_grad_enabled())
    torch._C._set_grad_enabled(torch.is_grad_enabled() and not mode.mode)


def leave(mode):
    torch._C._set_grad_enabled(mode.before.pop())
