"""Damage the content of files at random, the same way in every run."""

import random
from collections.abc import Iterator

_EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1\0\0\0")


def mutants(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield damaged copies: flipped bits, extreme lengths, other bytes, cuts, and exchanged or repeated blocks.

    Half of the damage is in the first 128 bytes, where the headers of most formats are.
    """
    rng = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            size = max(1, len(mutant))
            at, other = rng.randrange(rng.choice((min(size, 128), size))), rng.randrange(size)
            length = rng.choice((1, 2, 4, 16, 64))
            match rng.randrange(8):
                case 0 | 1 | 2:
                    mutant[at : at + 1] = bytes([(mutant[at] if mutant else 0) ^ 1 << rng.randrange(8)])
                case 3:
                    extreme = rng.choice(_EXTREMES)[: rng.choice((1, 2, 4))]
                    mutant[at : at + len(extreme)] = extreme
                case 4:
                    mutant[at : at + length] = rng.randbytes(length)
                case 5:
                    del mutant[at if rng.random() < 0.5 else other :]
                case 6:
                    mutant[at : at + length], mutant[other : other + length] = (
                        mutant[other : other + length],
                        mutant[at : at + length],
                    )
                case 7:
                    mutant[at:at] = mutant[other : other + length]
        yield bytes(mutant)
