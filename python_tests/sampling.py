"""`sample_negatives` in plain Python: Philox in integers, logarithms of torch in float64."""

import torch

MASK = 2**32 - 1


def philox(key, counter):
    """The four words of a block of Philox4x32-10; `key` has its first word in the low half."""
    k0, k1 = key & MASK, key >> 32 & MASK
    a, b, c, d = counter
    for _ in range(10):
        low, high = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = high >> 32 ^ b ^ k0, high & MASK, low >> 32 ^ d ^ k1, low & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return a, b, c, d


def random_bits(seed, item):
    """The 64 random bits of an item: word i / 16 % 4 of block i / 64 * 16 + i % 16, two streams."""
    block, word = item // 64 * 16 + item % 16, item // 16 % 4
    high, low = (philox(seed % 2**64, (block, stream, 0, 0))[word] for stream in (0, 1))
    return high << 32 | low


def logits(scores, overlaps, *, balance=0.6, balance_on=0, temperature=1.0):
    """In float32, in float64 if one of the tensors is, rounded at every step."""
    dtype = torch.float64 if torch.float64 in (scores.dtype, overlaps.dtype) else torch.float32
    first, second = (scores, overlaps) if balance_on == 0 else (overlaps, scores)

    def number(x):
        return torch.tensor(x, dtype=dtype)

    mix = number(balance) * first.cpu().to(dtype) + number(1 - balance) * second.cpu().to(dtype)
    return (mix * number(1 / temperature)).double()


def sample(scores, overlaps, candidates, num_samples, seed, **options):
    """The sample, in the order of its drawing: the items of the earliest exponential times."""
    count = len(scores)
    bits = [random_bits(int(seed), item) for item in range(count)]
    # -log(1 - v) for v = (bits + 1/2) / 2^64, without cancellation on either side of 1/2
    v = torch.tensor([(2 * b + 1) / 2**65 for b in bits], dtype=torch.float64)
    u = torch.tensor([(2 * (2**64 - 1 - b) + 1) / 2**65 for b in bits], dtype=torch.float64)
    times = torch.where(v < 0.5, -torch.log1p(-v), -torch.log(u)).log()
    times = (times - logits(scores, overlaps, **options)).tolist()
    order = sorted((times[k], k) for k in range(count) if candidates[k])
    return torch.tensor([k for _, k in order[:num_samples]], dtype=torch.int64)
