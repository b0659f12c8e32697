"""The error family. Every error the library raises on purpose is a `SubquadError`.

House form: what you asked, what you gave, why it cannot be, what to do.
"""


class SubquadError(Exception):
    """Base of every error subquad raises on purpose."""


class IRError(SubquadError, ValueError):
    """A graph, op, type or text that breaks a rule of the IR."""


class CaptureError(SubquadError):
    """A model that could not be captured, or a call outside what was captured."""


class RecipeError(SubquadError, ValueError):
    """An unknown recipe, or one asked for where it cannot be applied."""


class BackendError(SubquadError):
    """A backend that is missing, or that cannot run a graph."""


class CalibrationError(SubquadError, ValueError):
    """Batches, metrics or weights that cannot be measured, fitted or kept."""


class PlanError(SubquadError, ValueError):
    """A budget that no plan keeps, lengths that it cannot have, or a saved plan that cannot be read."""
