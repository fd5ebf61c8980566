"""The backward pass of a graph with pretended CUDA tensors: PyTorch's own engine would start a thread for the GPU."""

from collections import Counter

import torch


def needs(root):
    """How many results each node of the graph below `root` waits for."""
    found, todo, waiting = {root}, [root], Counter()
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in found:
                    found.add(node)
                    todo.append(node)
    return waiting


@torch.no_grad()
def backward(loss):
    """loss.backward(): every node once, when all that comes into it is there."""
    waiting, ready = needs(loss.grad_fn), [loss.grad_fn]
    given = {loss.grad_fn: [torch.ones_like(loss)]}
    while ready:
        node = ready.pop()
        for gradient, (following, place) in zip(results(node, given.pop(node, [])), node.next_functions, strict=False):
            if following is None:
                continue
            expected = following._input_metadata
            slots = given.setdefault(following, [None] * len(expected))
            if gradient is not None:
                gradient = gradient.sum_to_size(expected[place].shape).to(expected[place].dtype)
                slots[place] = gradient if slots[place] is None else slots[place] + gradient
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


def results(node, given):
    """What a node makes of the gradients given to it; a leaf keeps them."""
    if all(gradient is None for gradient in given):
        return (None,) * len(node.next_functions)
    if not hasattr(node, "variable"):
        made = node(*given)
        return made if isinstance(made, tuple) else (made,)
    leaf = node.variable
    if leaf.grad is None:
        leaf.grad = given[0].clone()
    else:
        leaf.grad += given[0]
    return ()
