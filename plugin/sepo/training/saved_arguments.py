"""Training arguments as a trainer saves them next to the weights: without secrets."""

from __future__ import annotations

import contextlib
import copy
import copyreg
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sepo.redaction import is_secret_key, redacted

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class SavesNoSecrets(_Base):
    """Mixin for a ``transformers.Trainer`` whose ``training_args.bin`` contains no secrets.

    The trainer pickles its arguments, ``hub_token`` among them, and pushes the file with the model. A run that resumes
    does not read it.
    """

    args: Any

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with self._pickled_without_secrets():
            super()._save(*args, **kwargs)

    def _push_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._pickled_without_secrets():
            super()._push_from_checkpoint(*args, **kwargs)

    @contextlib.contextmanager
    def _pickled_without_secrets(self) -> Iterator[None]:
        own, self.args = self.args, pickled_without_secrets(self.args)
        try:
            yield
        finally:
            self.args = own


def pickled_without_secrets(arguments: Any) -> Any:
    """Return a copy of training arguments that has all values, and that is pickled without secrets."""
    kind = type(arguments)

    class Copy(kind):  # type: ignore[misc, valid-type]
        __class__ = property(lambda self: kind)  # pickle compares it with the class that it writes

        def __reduce__(self) -> Any:
            return copyreg.__newobj__, (kind,), _without_secrets(self.__dict__)  # type: ignore[attr-defined]

        def __reduce_ex__(self, protocol: Any) -> Any:
            return self.__reduce__()

    made = copy.copy(arguments)
    made.__class__ = Copy
    return made


def _without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with secrets replaced: by None, or inside of Ray's options."""
    kept = {name: None if is_secret_key(name) else value for name, value in values.items()}
    ray = kept.get("ray_init_kwargs")
    return {**kept, "ray_init_kwargs": redacted(ray)} if isinstance(ray, dict) else kept
