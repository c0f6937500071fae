import torch


def test_uninitialised_memory_is_poisoned():
    like = torch.zeros(3)
    for empty in (
        torch.empty(3),
        torch.empty_like(like),
        like.new_empty(3),
        torch.empty_strided((2, 2), (2, 1)),
        torch.empty(3, dtype=torch.bfloat16),
        torch.empty(3, dtype=torch.float64),
    ):
        assert empty.isnan().all()
