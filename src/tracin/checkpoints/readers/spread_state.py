"""Checkpoints whose state DeepSpeed or FSDP spread over processes, known by their files."""

from pathlib import Path

# Each is a pattern within the folder of a checkpoint.
_FILES = {
    "DeepSpeed": ("global_step*", "zero_pp_rank_*", "*/zero_pp_rank_*", "*/mp_rank_*"),
    "FSDP": ("*.distcp", "optimizer_*/*.distcp", "pytorch_model_fsdp_*", "optimizer.bin"),
}


def spread_by(folder: Path) -> str:
    """Say "DeepSpeed" or "FSDP" where the state of an optimizer in a folder is theirs, else ""."""
    if not folder.is_dir():
        return ""
    found = (
        name
        for name, patterns in _FILES.items()
        if any(True for pattern in patterns for _ in folder.glob(pattern))
    )
    return next(found, "")
