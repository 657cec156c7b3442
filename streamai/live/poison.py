"""Events that make a step fail: found one by one, left out when they failed twice alone."""

from __future__ import annotations

import traceback

from streamai.errors import StepError
from streamai.flow import Flow
from streamai.live.batch import Batch

POISON_RUN_MAX = 16  # so many events in a row that fail: it is the flow, not the events


class Poison:
    """What is known of failing events of one partition.

    stacks         offset -> stack, of those that failed twice alone and are to be left out
    careful_until  events below this offset go one by one
    """

    def __init__(self) -> None:
        self.stacks: dict[int, str] = {}
        self.careful_until = 0
        self._suspect = -1  # offset of the event that failed alone last
        self._run = 0

    def well(self, offset: int) -> None:
        """A step that began at this offset did not fail."""
        if offset > self._suspect:  # not one that is only read again
            self._run = 0

    def failed(self, error: Exception, first: int, last: int, where: str, flow: Flow) -> None:
        """A step over the offsets first to last failed. StepError if the worker is to stop."""
        if first == last:
            if self._suspect == first:
                self._run += 1
                if flow.on_error == "stop" or self._run > POISON_RUN_MAX:
                    raise StepError(
                        f"event {where} of flow {flow.name} failed twice: {error!r}. Mend the flow's "
                        'code, or set on_error="dead_letter" (it stops anyway after '
                        f"{POISON_RUN_MAX} failing events in a row)"
                    ) from error
                self.stacks[first] = "".join(traceback.format_exception(error))
            self._suspect = first
        self.careful_until = max(self.careful_until, last + 1)

    def forget(self, fence: int) -> None:
        """What is below the fence never comes again."""
        self.stacks = {o: stack for o, stack in self.stacks.items() if o >= fence}

    def letter(self, batch: Batch, offset: int) -> tuple[str, list[tuple[str, bytes]]]:
        """(cause, headers) of the dead letter of an event that is left out."""
        stack = self.stacks[offset]
        cause = "poison: " + stack.strip().rsplit("\n", 1)[-1][:500]
        place = f"{batch.topic}/{batch.partition}/{offset}".encode()
        return cause, [("cause", cause.encode()), ("id", place), ("stack", stack[-16_000:].encode())]
