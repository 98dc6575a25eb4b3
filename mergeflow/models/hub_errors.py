"""What goes wrong between us and the hub, each as one line with the way out."""

from __future__ import annotations

import errno

from mergeflow.errors import CheckpointError, MergeflowError, RunError

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: Exception, model: str, endpoint: str) -> MergeflowError:
    """The error to report for what `huggingface_hub` (or the network below it) raised.

    Args:
        model: ``org/name`` or ``org/name@revision``.
        endpoint: the hub's address.
    """
    from huggingface_hub import errors as hub

    status = _status(error)
    if isinstance(error, hub.HFValidationError):
        return CheckpointError(f"{model}: neither a folder nor a hub id")
    if isinstance(error, hub.OfflineModeIsEnabled):
        return CheckpointError(f"{model}: not in the local cache, and HF_HUB_OFFLINE is set; unset it to download")
    if status is not None:
        return _refusal(error, status, model, endpoint)
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return RunError(f"{model}: cannot be downloaded: {error.strerror} ({error.filename or 'the hub cache'})")
    return CheckpointError(
        f"{model}: cannot reach {endpoint} ({_one_line(error)}); check the network, or name a local folder"
    )


def is_unreachable(error: Exception) -> bool:
    """Whether the hub did not answer (or only that it is busy), so that what is cached may stand in for it."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.HFValidationError):
        return False
    status = _status(error)
    return status is None or status >= 500 or status == 429


def expected_errors() -> tuple[type[Exception], ...]:
    """What a call into `huggingface_hub` may raise for reasons that are not ours.

    The network library below it has changed twice (requests, httpx, httpx2). The bases of its own error class are that
    library's root class, whichever it is, and OSError. ValueError: a bad id, or an answer that is not JSON.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError, ValueError)


def _refusal(error: Exception, status: int, model: str, endpoint: str) -> CheckpointError:
    """The hub answered, and the answer is no."""
    from huggingface_hub import errors as hub

    page = f"{endpoint}/{model.partition('@')[0]}"
    if isinstance(error, hub.GatedRepoError):
        return CheckpointError(f"{model}: access is restricted; accept its terms at {page}, then run `hf auth login`")
    if isinstance(error, hub.RevisionNotFoundError):
        return CheckpointError(f"{model}: the model has no such revision; see {page}/tree/main for those it has")
    if "Invalid credentials" in str(error):
        return CheckpointError(f"{model}: {endpoint} refuses your token; run `hf auth login`")
    # A stranger gets 401 for what is missing and for what is private alike.
    if isinstance(error, hub.RepositoryNotFoundError) or status == 401:
        return CheckpointError(f"{model}: no such model on {endpoint} (if it is private, run `hf auth login`)")
    if status == 403:
        return CheckpointError(f"{model}: {endpoint} denies access; run `hf auth login`, or ask its owner")
    return CheckpointError(f"{model}: {endpoint} answered {status} ({_one_line(error)}); try again later")


def _status(error: Exception) -> int | None:
    """The status of the hub's answer, None when there was none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
