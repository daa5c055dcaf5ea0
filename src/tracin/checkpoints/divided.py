"""Folders in which each rank saved its own part: which tool puts the weights together."""

from pathlib import Path

from tracin.errors import CheckpointError


def refuse_divided(folder: Path) -> None:
    """Refuse a folder that holds parts of weights, by the name of the tool that merges them.

    Raises:
        CheckpointError: DeepSpeed, FSDP or torch.distributed.checkpoint wrote it.
    """
    if way := way_to_merge(folder):
        raise CheckpointError(
            f"{folder} holds weights in parts, as {way}. Then give the file or folder that it "
            "writes."
        )


def way_to_merge(folder: Path) -> str:
    """Who wrote parts of weights to this folder and what merges them, or nothing."""
    if not folder.is_dir():
        return ""
    parts = [*folder.glob("*_optim_states.pt"), *folder.glob("*_model_states.pt")]
    if (folder / "zero_to_fp32.py").is_file() or any(folder.glob("global_step*/")) or parts:
        return (
            "DeepSpeed saves them: merge them by python zero_to_fp32.py . output in this folder "
            "(the script lies there, and in deepspeed.utils)"
        )
    if inner := next(folder.glob("pytorch_model_fsdp_*/"), None):
        return (
            "accelerate saves them under FSDP: merge them by accelerate merge-weights "
            f"{inner} {folder}"
        )
    if (folder / ".metadata").is_file():
        return (
            "torch.distributed.checkpoint saves them: merge them by torch.distributed.checkpoint."
            f"format_utils.dcp_to_torch_save({str(folder)!r}, 'weights.pt')"
        )
    return ""
