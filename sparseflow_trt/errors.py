"""Every error this tool raises on purpose.

An error is one sentence of what is wrong (with which file, layer or value) and one of what to do
about it. The CLI prints both and exits with `exit_code`; a traceback means a bug of ours.

An error of the command's own words exits with EXIT_USAGE, as click's own errors do: one that would be there
whatever the files hold and whatever the machine has. All others exit with their class's code.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_SPARSE = 3
EXIT_OUTPUTS_DIFFER = 4
EXIT_EVIDENCE_DIFFERS = 5
EXIT_NOT_INSTALLED = 6
EXIT_INTERRUPTED = 130
EXIT_HUNG_UP = 129
EXIT_NOT_READ = 141
EXIT_TERMINATED = 143


def one_line(error: BaseException) -> str:
    """Another library's error as one line with no full stop, to stand in a sentence."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    return (text or type(error).__name__).rstrip(".")


def deepest(error: BaseException) -> BaseException:
    """The first cause of an error that says something."""
    while error.__cause__ is not None and str(error.__cause__).strip():
        error = error.__cause__
    return error


class SparseflowError(Exception):
    """The root of the hierarchy: what is wrong, and what to do.

    Attributes:
        exit_code: Of the command: the class's, or EXIT_USAGE where the command's own words are wrong.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "", *, usage: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.__notes__ = [f"hint: {hint}"] if hint else []  # a traceback prints them, from Python 3.11 on
        if usage:
            self.exit_code = EXIT_USAGE


class ModelError(SparseflowError):
    """A model file that cannot be read, or that says something impossible."""


class PolicyError(SparseflowError):
    """A policy file with wrong fields or values."""


class PlanError(SparseflowError):
    """A plan with wrong fields, or one that does not fit its model."""


class NotSparseError(SparseflowError):
    """Weights that are asked to run sparse, and are not 2:4."""

    exit_code = EXIT_NOT_SPARSE


class ShapeError(SparseflowError):
    """Input shapes or optimization profiles that do not fit the model."""


class InputError(SparseflowError):
    """Validation inputs that cannot be read or do not fit the model."""


class BuildError(SparseflowError):
    """A backend could not build the engine."""


class EvidenceError(BuildError):
    """The engine was built, and it does not do what the plan says."""

    exit_code = EXIT_EVIDENCE_DIFFERS


class ArtifactError(SparseflowError):
    """An artifact that cannot be read or written."""


class DeployError(SparseflowError):
    """A deployment that cannot be made, served or rolled back."""


class NotInstalledError(SparseflowError):
    """A package or library that this step needs and this machine lacks."""

    exit_code = EXIT_NOT_INSTALLED
