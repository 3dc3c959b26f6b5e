"""Sums over microbatches in a fixed order, bit-identical for any number of workers.

Floating-point addition is commutative but not associative. The terms of all microbatches are therefore added in the
order of a binary tree that depends on their number alone. A worker adds the subtrees that lie within its own
microbatches, and the workers exchange those sums.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.data.sampling import worker_microbatches

Node = tuple[int, int]  # a subtree: the microbatches first..last-1


def tree_sum(node: Node, lookup: Callable[[Node], list[Tensor] | None]) -> list[Tensor]:
    """Return the sums over a subtree, one of each tensor; the node (0, M) is the tree of M microbatches.

    `lookup` returns the sums over a node where they are available, else None; every leaf is available. It is called
    from left to right. Its results may be changed in place: at most log2(M) + 1 sums are held at a time.
    """
    available = lookup(node)
    if available is not None:
        return available
    first, last = node
    middle = (first + last) // 2
    left, right = tree_sum((first, middle), lookup), tree_sum((middle, last), lookup)
    torch._foreach_add_(left, right)
    return left


def subtrees(node: Node, microbatches: range) -> list[Node]:
    """Return the largest disjoint subtrees at or below `node` that lie within `microbatches`, from left to right.

    Example:
        >>> subtrees((0, 8), range(2, 8))
        [(2, 4), (4, 8)]
    """
    first, last = node
    if first >= microbatches.stop or last <= microbatches.start:
        return []
    if microbatches.start <= first and last <= microbatches.stop:
        return [node]
    middle = (first + last) // 2
    return subtrees((first, middle), microbatches) + subtrees((middle, last), microbatches)


def sum_over_microbatches(
    num_microbatches: int, rank: int, world_size: int, compute: Callable[[int], list[Tensor]]
) -> list[Tensor]:
    """Return the sum of `compute` over all microbatches, bit-identical on each of at most `num_microbatches` workers.

    `compute` is called for this worker's microbatches in their order. It returns float32 tensors of fixed shapes, which
    may be changed in place.
    """
    root = (0, num_microbatches)

    def leaf(node: Node) -> list[Tensor] | None:
        return compute(node[0]) if node[1] - node[0] == 1 else None

    if world_size == 1:
        return tree_sum(root, leaf)
    nodes = [subtrees(root, worker_microbatches(num_microbatches, worker, world_size)) for worker in range(world_size)]
    sums = [tree_sum(node, leaf) for node in nodes[rank]]
    return _exchange(root, sums, rank, nodes)


def _exchange(root: Node, sums: Sequence[list[Tensor]], rank: int, nodes: Sequence[Sequence[Node]]) -> list[Tensor]:
    # Each worker reduces its shard of the elements and broadcasts the result, because it then sends and receives about
    # twice the size of a gradient for any number of workers.
    world_size, shapes = len(nodes), sums[0]
    flat = torch.stack([torch.cat([tensor.reshape(-1) for tensor in terms]) for terms in sums])
    size = flat.shape[1]
    flat = torch.nn.functional.pad(flat, (0, -size % world_size))
    if dist.get_backend() == "gloo":  # exchanges tensors on the CPU only
        flat = flat.cpu()
    shards = flat.view(len(sums), world_size, -1).transpose(0, 1).contiguous()  # (workers, own nodes, shard size)
    counts = [len(each) for each in nodes]
    received = flat.new_empty(sum(counts), shards.shape[2])
    dist.all_to_all_single(received, shards.flatten(0, 1), counts, [counts[rank]] * world_size)
    by_node = dict(zip([node for each in nodes for node in each], received, strict=True))
    (total,) = tree_sum(root, lambda node: [by_node[node]] if node in by_node else None)
    gathered = flat.new_empty(world_size, shards.shape[2])
    dist.all_gather(list(gathered), total)
    totals = torch.split(gathered.view(-1)[:size], [tensor.numel() for tensor in shapes])
    return [values.view(tensor.shape).to(tensor.device) for values, tensor in zip(totals, shapes, strict=True)]
