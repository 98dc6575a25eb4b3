"""The bytes of a pickle, taken from a file a piece at a time and never further than they may go."""

from __future__ import annotations

from mergeflow.errors import CheckpointError
from mergeflow.models.ranges import Ranges

# A pickle of 100,000 tensors takes about 15 MB. What is larger holds something else than a model's tensors.
MAX_PICKLE_BYTES = 64_000_000
MAX_LINE_BYTES = 4_096
_PIECE_BYTES = 1 << 16


class PickleStream:
    """Bytes from `start` of a file up to `end` (or as many as any pickle may have), in order.

    `place` is for messages: the file, and what of it the pickle is.
    """

    def __init__(self, ranges: Ranges, start: int, end: int, place: str) -> None:
        self.place = place
        self.position = start
        self._ranges = ranges
        self._end = min(end, start + MAX_PICKLE_BYTES)
        self._held = b""
        self._held_from = start

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            CheckpointError: there are not so many.
        """
        begin = self.position - self._held_from
        if begin + count > len(self._held):
            self._fetch(count)
            begin = 0
        self.position += count
        return self._held[begin : begin + count]

    def line(self) -> str:
        """The text up to the next line break, which is taken too.

        Raises:
            CheckpointError: it is too long, or not UTF-8.
        """
        found = bytearray()
        while (byte := self.take(1)) != b"\n":
            found += byte
            if len(found) > MAX_LINE_BYTES:
                raise self.damaged("a line of text never ends")
        return self.text(bytes(found))

    def text(self, content: bytes) -> str:
        """Bytes of the pickle as text.

        Raises:
            CheckpointError: they are not UTF-8.
        """
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a text in it is not UTF-8") from error

    def damaged(self, what: str) -> CheckpointError:
        """The error for a pickle that cannot be one of torch's."""
        return CheckpointError(f"{self.place}: cannot be read as weights saved by torch: {what}")

    def _fetch(self, count: int) -> None:
        if count > self._end - self.position:
            raise self.damaged(f"it ends in the middle of a value of {count} bytes, or is larger than any model's")
        wanted = min(max(count, _PIECE_BYTES), self._end - self.position)
        self._held, self._held_from = self._ranges.read(self.position, wanted), self.position
        if len(self._held) < count:
            raise self.damaged("the file is cut off")
