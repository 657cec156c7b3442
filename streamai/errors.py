"""What can go wrong, in the words of the person who must mend it."""


class StreamaiError(Exception):
    """Base of every error that streamai raises on purpose.

    A message says what happened, where, what was expected, and what to do.
    """


class DeclarationError(StreamaiError):
    """A view, a flow or a mapping that cannot work; raised at import or when it is built."""


class SettingsError(StreamaiError):
    """A setting that is unknown or out of range."""


class CatalogueError(StreamaiError):
    """A catalogue file that cannot be read, or that contradicts the stored item indices."""


class ModelError(StreamaiError):
    """A weights file that is damaged, of another version, or made for another plan or vocabulary."""


class StateError(StreamaiError):
    """A store that is damaged, locked, or was made by another flow, plan or version."""


class InputError(StreamaiError):
    """A file of events that cannot be read as asked; names file, column and row where known."""


class StepError(StreamaiError):
    """An exception inside a step: the engine is not to be trusted and has to be reopened."""
