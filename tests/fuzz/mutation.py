"""Ways to spoil bytes and numbers that every target shares."""

from __future__ import annotations

import random

EDGES = (0, 1, 2, 7, 19, 20, 21, 63, 127, 128, 255, 256, 1500, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63)


def spoil(data: bytes, random: random.Random, most: int = 4) -> bytes:
    """Bytes with up to `most` changes: flipped, overwritten with an edge, cut out, doubled, put in, or cut off."""
    found = bytearray(data)
    for _ in range(random.randint(1, most)):
        if not found:
            return random.randbytes(random.randint(0, 64))
        place = random.randrange(len(found))
        length = random.choice((1, 2, 4, 8, 40))
        how = random.randrange(6)
        if how == 0:
            found[place] ^= 1 << random.randrange(8)
        elif how == 1:
            width = random.choice((1, 2, 4))
            value = random.choice(EDGES) % (1 << 8 * width)
            found[place : place + width] = value.to_bytes(width, random.choice(("little", "big")))
        elif how == 2:
            del found[place : place + length]
        elif how == 3:
            found[place:place] = found[place : place + length] * random.randint(1, 3)
        elif how == 4:
            found[place:place] = random.randbytes(length)
        else:
            del found[place:]
    return bytes(found)
