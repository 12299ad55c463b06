"""The weights in a model folder as the loaded model has them, one at a time, each hashed as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from workbench.errors import NotSupported, UserError
from workbench.models import checkpoints
from workbench.models.digests import FolderDigests, digest
from workbench.models.loading import quantization
from workbench.models.sources import Source
from workbench.models.stored_names import Conversion, LoadPlan
from workbench.typing import Tensor

Reader = Callable[[], Tensor]


class NotInFiles(NotSupported):
    """What the files alone do not tell of a model's weights, or of an adapter's change of them; loaded, it may."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: load the pair (workbench.load_pair) and give that.")
        self.reason = reason


class StoredModel:
    """A model folder: its tensors, what loading makes of them, and their hashes.

    Reads the files that transformers' own loader reads. Nothing but headers is read to begin with.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        if checkpoints.is_pickle_only(source.files, adapter=False):
            raise NotInFiles(f"{source.name} holds its weights as pickle, which is not opened for this")
        self.digests = FolderDigests(source.local())
        checkpoints.check_whole(self.digests.tensors, source.name)
        shapes = {name: tensor.shape for name, tensor in self.digests.tensors.items()}
        self.plan = LoadPlan(source, shapes, self._same)
        self._made: dict[str, Tensor] = {}

    def readers(self) -> dict[str, Reader]:
        """Name in the loaded model -> reader of the weight, in the dtype it is stored in.

        Raises NotInFiles for quantized weights: what they stand for is known once they are loaded; UserError where
        not even the config tells, and for files that lack weights their config asks for or hold them in other shapes.
        """
        if (how := quantization(self.source.config)) is not None:
            raise NotInFiles(f"{self.source.name} holds quantized weights ({how})")
        checkpoints.check_unpacked(self.digests.tensors, self.source.name)
        if self.plan.missing:
            raise UserError(checkpoints.lacking(self.source.name, self.plan.missing))
        for name, (stored, wanted) in self.plan.misshapen.items():
            raise UserError(f"{self.source.name}: {checkpoints.other_shape(name, stored, wanted)}")
        return {
            name: partial(self._read, conversion, name)
            for conversion in self.plan.conversions
            for name in conversion.loaded
        }

    def unused_readers(self) -> dict[str, Reader]:
        """Stored name -> reader, of the tensors that the loaded model has no place for."""
        return {name: partial(self.digests.read, name) for name in self.plan.unused}

    def _same(self, name: str, other: str) -> bool:
        return torch.equal(self.digests.read(name), self.digests.read(other))

    def _read(self, conversion: Conversion, name: str) -> Tensor:
        if conversion.converter is None:
            return self.digests.read(conversion.stored[0])
        if name not in self._made:
            self._made = self.plan.convert(
                conversion, {stored_name: self.digests.read(stored_name) for stored_name in conversion.stored}
            )
        return self._made.pop(name)

    def saved_digests(self) -> Iterator[tuple[str, str]]:
        """Name and digest of every weight of the loaded model, in the pieces in which ``save_pretrained`` writes it.

        Those that nobody has read are read now. A checkpoint that makes no whole model goes by its stored names.
        """
        digests = dict(self.digests.all())
        saved = {conversion: self.plan.saved(self.plan.empty(conversion)) for conversion in self.plan.conversions}
        if {name for names in saved.values() for name in names} != self.plan.saved_names:
            yield from digests.items()
            return
        for conversion, pieces in saved.items():
            stored = {self._name_among(name, pieces): name for name in conversion.stored}
            if conversion.converter is None and len(pieces) == 1:
                yield next(iter(pieces)), digests[conversion.stored[0]]
            elif set(stored) == set(pieces):
                yield from ((piece, digests[name]) for piece, name in stored.items())
            else:
                read = {name: self.digests.read(name) for name in conversion.stored}
                whole = self.plan.saved(self.plan.convert(conversion, read))
                yield from ((piece, digest(tensor)) for piece, tensor in whole.items())

    def _name_among(self, stored: str, pieces: dict[str, Tensor]) -> str:
        prefix = getattr(self.plan.shape, "base_model_prefix", "")
        return f"{prefix}.{stored}" if f"{prefix}.{stored}" in pieces else stored
