"""Text that was read once by a person, and must not change unnoticed."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """Compares text with a file beside this one; `pytest --update-golden` writes it."""

    update: bool

    def check(self, name: str | Path, text: str) -> None:
        """Assert that text is what the file says. name: beside this one, or a whole path."""
        file = FOLDER / name
        if self.update:
            file.write_text(text, encoding="utf-8")
        assert file.exists(), f"{file} is missing; run pytest --update-golden and read it"
        assert text == file.read_text(encoding="utf-8")
