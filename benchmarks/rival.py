"""Captum's exact TracInCP on the same work, as its documentation has it used."""

from benchmarks.subjects import RATE, Subject


def captum_self_influence(subject: Subject) -> object:
    """Self-influence by Captum. Raises ImportError where Captum is not installed."""
    import torch
    from captum.influence import TracInCP  # pyright: ignore[reportMissingImports]  # bench extra
    from torch.utils.data import TensorDataset

    def load(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> float:
        model.load_state_dict(state)
        return RATE

    rival = TracInCP(
        subject.model,
        TensorDataset(*subject.train),
        subject.checkpoints,  # pyright: ignore[reportArgumentType]  # it passes them to our loader
        checkpoints_load_func=load,  # pyright: ignore[reportArgumentType]  # the same
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
        batch_size=subject.batch_size,
        sample_wise_grads_per_batch=True,
    )
    return rival.self_influence()
