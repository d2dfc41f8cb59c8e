"""A tensor's bytes as 64-bit words, on its own device."""

from __future__ import annotations

import torch

#: By the bytes of a number, what any dtype of that size is copied as.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Words:
    """A strided tensor's bytes, in the order of its indices, as int64; where they lie so, without copying any."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._size = tensor.element_size()
        #: How many whole words there are.
        self.count = tensor.numel() * self._size // 8
        self._words = self._as_they_lie()

    def some(self, first: int, last: int) -> torch.Tensor:
        """int64 [last - first]; a copy where the tensor is not contiguous, or its memory begins off a word's place."""
        if self._words is not None:
            return self._words[first:last]
        begin = first * 8 // self._size
        copy = self._copy(begin, -(-last * 8 // self._size), 0)
        skipped = first - begin * self._size // 8  # half of a complex128
        return copy[skipped : skipped + last - first]

    def rest(self) -> list[torch.Tensor]:
        """What is behind the last whole word, as an int64 [1] that zeros fill up; [] where that is nothing."""
        begin, end = self.count * 8 // self._size, self._tensor.numel()
        if self._size >= 8 or begin == end:
            return []
        return [self._copy(begin, end, 8 // self._size - (end - begin))]

    def _copy(self, begin: int, end: int, zeros: int) -> torch.Tensor:
        """The numbers from `begin` to before `end` in the order of the indices, and so many zeros, as int64."""
        tensor = self._tensor
        copy = torch.zeros((end - begin + zeros) * self._size, dtype=torch.uint8, device=tensor.device)
        target = copy[: (end - begin) * self._size].view(tensor.dtype)
        if not tensor.is_conj() and not tensor.is_neg():  # then numbers are their bytes: not every dtype can be copied
            if tensor.is_contiguous():  # and bytes may lie anywhere: complex128 off its place would end the process
                tensor, target, begin = tensor.view(-1).view(torch.uint8), target.view(torch.uint8), begin * self._size
            elif self._size in _BITS:
                tensor, target = tensor.view(_BITS[self._size]), target.view(_BITS[self._size])
            else:
                tensor, target, begin = torch.view_as_real(tensor), torch.view_as_real(target).view(-1), 2 * begin
        _copy_to(target, tensor, begin)
        return copy.view(torch.int64)

    def _as_they_lie(self) -> torch.Tensor | None:
        """int64 [count], a view; None where there cannot be one."""
        tensor = self._tensor
        if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            return None
        if tensor.data_ptr() % 8 or tensor.storage_offset() * self._size % 8:
            return None
        flat = tensor if tensor.dim() == 1 else tensor.view(-1)
        whole = self.count * 8 // self._size
        return (flat if whole == flat.numel() else flat[:whole]).view(torch.int64)


def _copy_to(target: torch.Tensor, tensor: torch.Tensor, begin: int) -> None:
    """Fill `target`, one-dimensional, with the numbers of `tensor` from `begin` on, in the order of its indices."""
    if not target.numel():
        return
    if tensor.dim() < 2:
        target.copy_(tensor.reshape(-1)[begin : begin + target.numel()])
        return
    inner = tensor[0].numel()
    first, skipped = divmod(begin, inner)
    if skipped or target.numel() < inner:  # the rest of one slice, or a part of it
        count = min(inner - skipped, target.numel())
        _copy_to(target[:count], tensor[first], skipped)
    else:
        slices = target.numel() // inner
        count = slices * inner
        target[:count].view(slices, *tensor.shape[1:]).copy_(tensor[first : first + slices])
    _copy_to(target[count:], tensor, begin + count)
