"""What coded weights take, counted bit by bit."""

from dataclasses import dataclass

from fxloom.errors import CodingError

FLOAT_BITS = 32
"""What rates compare with: bits of a weight before."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Bits that weights take.

    weights: how many there are; kept: of them not zero; padding: zeros that are stored because runs
    are longer than `index_bits` can say; values: in the codebook, 0 where there is none and weights
    are written as they are. weight_bits, index_bits: of one stored weight and one run length
    without Huffman coding, index_bits 0 where there are no run lengths; weight_codes, index_codes:
    of all of them with it, None where not known. codebook: bits of its values; counts: how many
    weights are stored, and in which way; tables: Huffman codes, where their blocks begin, and what
    is left of last bytes.
    """

    weights: int
    kept: int
    padding: int
    values: int
    weight_bits: int
    index_bits: int
    weight_codes: int | None
    index_codes: int | None
    codebook: int
    counts: int
    tables: int

    @property
    def stored(self) -> int:
        """Weights of which something is stored."""
        return self.kept + self.padding if self.index_bits else self.weights

    @property
    def bits(self) -> int:
        """Without Huffman coding: indices and run lengths of fixed width, codebook, counts."""
        each = self.weight_bits + self.index_bits
        return self.stored * each + self.codebook + self.counts

    @property
    def huffman_bits(self) -> int | None:
        """With Huffman coding: what is written."""
        if self.weight_codes is None or self.index_codes is None:
            return None
        return self.weight_codes + self.index_codes + self.codebook + self.counts + self.tables

    @property
    def rate(self) -> float:
        """`bits`, of as many float32 numbers'."""
        return self.bits / (FLOAT_BITS * max(self.weights, 1))

    @property
    def huffman_rate(self) -> float | None:
        """`huffman_bits`, of as many float32 numbers'."""
        total = self.huffman_bits
        return None if total is None else total / (FLOAT_BITS * max(self.weights, 1))


def published(
    weights: int,
    kept: float,
    weight_bits: int,
    index_bits: int,
    *,
    width: int = FLOAT_BITS,
    weight_code: float | None = None,
    index_code: float | None = None,
) -> Storage:
    """What papers that publish only ratios have stored.

    kept: share of weights that are not zero. These lie anywhere: between two of them are as many
    zeros as in a row of independent draws, and as many padding zeros as these need. weight_bits: of
    a codebook of 2**weight_bits values of `width` bits. weight_code, index_code: bits of a code in
    the mean, where they are published. Tables and counts are taken as nothing, as papers do.
    """
    if not 0 < kept <= 1 or weights < 1 or weight_bits < 1 or index_bits < 0:
        raise CodingError(
            "published storage requires weights, a share of kept ones above 0 and up to 1, at "
            f"least 1 bit of a weight and 0 of a run length, got {weights}, {kept}, {weight_bits} "
            f"and {index_bits}"
        )
    count = round(weights * kept)
    # A gap of g zeros has g // 2**index_bits padding zeros: the sum over n of P(g >= n 2**bits).
    longer = (1 - kept) ** (1 << index_bits) if index_bits else 0.0
    padding = round(count * longer / (1 - longer))
    stored = count + padding if index_bits else weights
    codes = (weight_code, index_code if index_bits else 0.0)
    weight_codes, index_codes = (None if mean is None else round(mean * stored) for mean in codes)
    return Storage(
        weights=weights,
        kept=count,
        padding=padding,
        values=1 << weight_bits,
        weight_bits=weight_bits,
        index_bits=index_bits,
        weight_codes=weight_codes,
        index_codes=index_codes,
        codebook=(1 << weight_bits) * width,
        counts=0,
        tables=0,
    )
