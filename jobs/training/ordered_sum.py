"""Sums that do not depend on who computes their terms: slices of a batch, added over one fixed binary tree.

Floating-point addition is commutative but not associative. So that any number of workers gets the same bits, the
terms of all slices are added in the order of a tree that depends on the number of slices alone. A worker adds up the
subtrees that lie within its own slices, and the workers exchange those sums.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.data.sampling import worker_slices

Node = tuple[int, int]  # of the tree: the slices first..last-1 below it


def add_up(node: Node, term: Callable[[Node], list[Tensor] | None]) -> list[Tensor]:
    """The sum over a node of the tree.

    Args:
        node: where to begin; (0, V) is the root of V slices.
        term: the sum over a node where it is known, else None; it must be known at the leaves. It is called from left
            to right, and what it returns may be changed: at most log2(V) + 1 sums are held at a time.
    """
    known = term(node)
    if known is not None:
        return known
    first, last = node
    middle = (first + last) // 2
    left, right = add_up((first, middle), term), add_up((middle, last), term)
    torch._foreach_add_(left, right)
    return left


def subtrees(node: Node, slices: range) -> list[Node]:
    """The largest nodes at or below `node` that lie within `slices`, from left to right."""
    first, last = node
    if first >= slices.stop or last <= slices.start:
        return []
    if slices.start <= first and last <= slices.stop:
        return [node]
    middle = (first + last) // 2
    return subtrees((first, middle), slices) + subtrees((middle, last), slices)


def sum_over_slices(
    num_microbatches: int, rank: int, world_size: int, of_slice: Callable[[int], list[Tensor]]
) -> list[Tensor]:
    """Sum of what `of_slice` returns over all slices of the global batch, bit for bit the same on every worker.

    Args:
        num_microbatches: V, of the global batch.
        rank, world_size: this worker among the W <= V workers of the process group.
        of_slice: the terms of one slice: float32 tensors, always of the same shapes; they may be changed.
            Called for the slices of this worker, in their order.

    Returns:
        float32 tensors of those shapes.
    """
    root = (0, num_microbatches)

    def leaf(node: Node) -> list[Tensor] | None:
        return of_slice(node[0]) if node[1] - node[0] == 1 else None

    if world_size == 1:
        return add_up(root, leaf)
    nodes = [subtrees(root, worker_slices(num_microbatches, other, world_size)) for other in range(world_size)]
    sums = [add_up(node, leaf) for node in nodes[rank]]
    return _exchange(root, sums, rank, nodes)


def _exchange(root: Node, sums: Sequence[list[Tensor]], rank: int, nodes: Sequence[Sequence[Node]]) -> list[Tensor]:
    """Add up the workers' sums: each adds its own share of the numbers, and hands the result to all.

    So a worker sends and receives about twice the size of a gradient, whatever their number.
    """
    world_size, like = len(nodes), sums[0]
    # A share may be empty but for padding, where there are more workers than numbers.
    flat = torch.stack([torch.cat([tensor.reshape(-1) for tensor in one]) for one in sums])
    size = flat.shape[1]
    flat = torch.nn.functional.pad(flat, (0, -size % world_size))
    if dist.get_backend() == "gloo":  # which exchanges nothing but what is on the CPU
        flat = flat.cpu()
    mine = flat.view(len(sums), world_size, -1).transpose(0, 1).contiguous()  # (W, my nodes, share)
    share = mine.shape[2]
    counts = [len(other) for other in nodes]
    received = flat.new_empty(sum(counts), share)
    dist.all_to_all_single(received, mine.flatten(0, 1), counts, [counts[rank]] * world_size)
    known = dict(zip([node for other in nodes for node in other], received, strict=True))
    (total,) = add_up(root, lambda node: [known[node]] if node in known else None)
    whole = flat.new_empty(world_size, share)
    dist.all_gather(list(whole), total)
    parts = torch.split(whole.view(-1)[:size], [tensor.numel() for tensor in like])
    return [part.view(tensor.shape).to(tensor.device) for part, tensor in zip(parts, like, strict=True)]
