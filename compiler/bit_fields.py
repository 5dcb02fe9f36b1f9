"""Small tables as strings of bits: fields of any width, one after the other."""

from fxloom.errors import CodingError


class BitWriter:
    """Fields in the order in which they are written; the first bit is the lowest of its byte."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.size = 0

    def text(self, bits: str) -> None:
        """Bits as characters."""
        self._parts.append(bits)
        self.size += len(bits)

    def bits(self, value: int, width: int) -> None:
        """A number below 2**width, its most significant bit first."""
        assert 0 <= value < 1 << width, (value, width)
        if width:
            self.text(f"{value:0{width}b}")

    def number(self, value: int) -> None:
        """A number of any size (Elias, 1975: the gamma code of value + 1)."""
        width = (value + 1).bit_length()
        self.text("0" * (width - 1))
        self.bits(value + 1, width)

    def to_bytes(self) -> bytes:
        """All of it, padded with zeros to whole bytes."""
        text = "".join(self._parts)[::-1]
        return int(text or "0", 2).to_bytes(-(-self.size // 8), "little")


class BitReader:
    """Reads what a BitWriter wrote; raises CodingError where there is no more."""

    def __init__(self, data: bytes) -> None:
        self._text = f"{int.from_bytes(data, 'little'):0{8 * len(data)}b}"[::-1] if data else ""
        self.position = 0

    def bits(self, width: int) -> int:
        """The next `width` bits as a number."""
        end = self.position + width
        if end > len(self._text):
            raise CodingError(
                f"coded weights end too early: bits {self.position} to {end} are required, there "
                f"are {len(self._text)}. Get the file again"
            )
        field, self.position = self._text[self.position : end], end
        return int(field or "0", 2)

    def align(self) -> None:
        """Skip what is left of a byte. Raises CodingError where it is not zero."""
        if self.bits(-self.position % 8):
            raise CodingError(
                f"damaged coded weights: bits before bit {self.position} must be 0. Get the file "
                "again"
            )

    def number(self, most: int) -> int:
        """What `number` wrote. Raises CodingError for numbers above `most`."""
        width = 1
        while not self.bits(1):
            width += 1
            if width > most.bit_length() + 1:
                break
        else:
            self.position -= 1
            found = self.bits(width) - 1
            if found <= most:
                return found
        raise CodingError(
            f"damaged coded weights: a number of at most {most:,} is required before bit "
            f"{self.position}, got a larger one. Get the file again"
        )
