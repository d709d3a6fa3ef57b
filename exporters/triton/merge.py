"""A configuration that people edited, brought together with a fresh one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

# What follows from the engine: an older value would make Triton refuse the new one, or serve it wrongly.
_OURS = {
    "name",
    "platform",
    "backend",
    "default_model_filename",
    "input",
    "output",
    "model_repository_agents",
}


@dataclass(frozen=True)
class Difference:
    """A field in which the file and the fresh configuration differ.

    Attributes:
        field: Its path: "dynamic_batching.max_queue_delay_microseconds".
        theirs: What the file holds, as text; "" where it holds nothing.
        ours: What was generated.
        kept: Whose value stays.
    """

    field: str
    theirs: str
    ours: str
    kept: str


def merge_configs(
    base: ModelConfig | None, theirs: ModelConfig, ours: ModelConfig, decided: Collection[str] = ()
) -> tuple[ModelConfig, tuple[Difference, ...]]:
    """Merges three ways: what a person changed stays, what follows from the engine is renewed.

    Args:
        base: What was generated when the file was last written; None for a file that is not ours. Then
            everything that the file says and the engine does not decide stays.
        theirs: The file.
        ours: What is generated now.
        decided: Fields that are renewed, too, since an option of the command says them, by their paths.
    """
    merged = type(ours)()
    merged.CopyFrom(ours)
    differences: list[Difference] = []
    _merge(base, theirs, ours, merged, "", differences, {*_OURS, *decided})
    return merged, tuple(differences)


def _merge(
    base: Any, theirs: Any, ours: Any, merged: Any, path: str, found: list[Difference], decided: set[str]
) -> None:
    for descriptor in ours.DESCRIPTOR.fields:
        name = descriptor.name
        old, new = getattr(theirs, name), getattr(ours, name)
        if _bytes(theirs, descriptor) == _bytes(ours, descriptor):
            continue
        before = None if base is None else _bytes(base, descriptor)
        edited = (before is None and _is_set(theirs, descriptor)) or (
            before is not None and _bytes(theirs, descriptor) != before
        )
        if not edited:
            continue  # as it was generated: the fresh value takes its place
        # of a block that is not generated any more only what a person changed in it stays
        generated = _is_set(ours, descriptor) or (base is not None and _is_set(base, descriptor))
        message = None if _repeated(descriptor) else descriptor.message_type
        # of a choice (which versions are served) there is one value, and none of its parts
        within = message is not None and not message.oneofs and path + name not in decided
        if within and generated and _is_set(theirs, descriptor):
            inner = None if base is None else getattr(base, name)
            _merge(inner, old, new, getattr(merged, name), f"{path}{name}.", found, decided)
            continue
        kept = "generated" if path + name in decided else "the file's"
        if kept == "the file's":
            merged.ClearField(name)
            merged.MergeFrom(_alone(theirs, descriptor))
        found.append(Difference(path + name, _shown(theirs, descriptor), _shown(ours, descriptor), kept))


def _repeated(descriptor: Any) -> bool:
    flag = getattr(descriptor, "is_repeated", None)
    return bool(flag) if flag is not None else descriptor.label == descriptor.LABEL_REPEATED


def _is_set(message: Any, descriptor: Any) -> bool:
    return any(field.name == descriptor.name for field, _ in message.ListFields())


def _alone(message: Any, descriptor: Any) -> Any:
    """A message of one field alone, and of nothing where that is not set."""
    alone = type(message)()
    alone.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.name != descriptor.name:
            alone.ClearField(field.name)
    return alone


def _bytes(message: Any, descriptor: Any) -> bytes:
    return bytes(_alone(message, descriptor).SerializeToString(deterministic=True))


def _shown(message: Any, descriptor: Any) -> str:
    from google.protobuf import text_format

    return str(text_format.MessageToString(_alone(message, descriptor), as_one_line=True)).strip()
