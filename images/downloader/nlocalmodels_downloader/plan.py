"""What each file needs, decided from the volume alone, without a network call."""

from __future__ import annotations

from enum import Enum

from nlocalmodels_downloader.config import Model
from nlocalmodels_downloader.volume import Verified, Volume


class Action(Enum):
    """What a file needs."""

    KEEP = "present and verified"
    VERIFY = "present, to be verified"
    FETCH = "to be fetched"


def plan_model(volume: Volume, model: Model) -> Action:
    """Returns what a model's file needs; for a split model, what its neediest file does."""
    actions = [plan_file(volume, file) for file in model.files]
    return next((action for action in (Action.FETCH, Action.VERIFY) if action in actions), Action.KEEP)


def plan_file(volume: Volume, file: Model) -> Action:
    """Returns what one file needs."""
    verified = volume.verified(file.file)
    if verified is not None and _is_declared(verified, file):
        return Action.KEEP
    if volume.former.find(file.sha256, file.size_bytes) is not None:
        return Action.VERIFY
    path = volume.path(file.file)
    if file.sha256 is not None and verified is not None:
        return Action.FETCH  # its digest is known, and it is another
    if file.sha256 is not None:
        is_worth_a_look = path.is_file() and path.stat().st_size == (file.size_bytes or path.stat().st_size)
    else:
        # Without a declared digest, only one that was recorded when it was fetched can be verified against.
        recorded = volume.recorded(file.file)
        is_worth_a_look = recorded is not None and _is_declared(recorded, file)
    return Action.VERIFY if is_worth_a_look else Action.FETCH


def _is_declared(verified: Verified, file: Model) -> bool:
    if file.sha256 is not None:
        return verified.sha256 == file.sha256
    # A mirror's bytes were held to the digest that the pinned source stated.
    return file.source.is_pinned and verified.source in [str(source) for source in file.sources]
