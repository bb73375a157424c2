"""Additions of sepo's stages to Axolotl's config schema and training arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from sepo.hosts.axolotl.block import BLOCK_KEYS, block_keys, plain
from sepo.recipe.keys import HOST_KEYS, unknown_key
from sepo.recipe.stages import owner_of_key


class _Block(BaseModel):
    """Schema of the block ``sepo``; unknown keys are errors. The resolution that all hosts share parses the values."""

    model_config = ConfigDict(extra="forbid")

    own: dict[str, Any] | None = Field(
        default=None, json_schema_extra={"description": "Keys of the settings of a registered objective or weight."}
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known, own = {}, dict(data.get("own") or {})
        for name, value in data.items():
            if name in BLOCK_KEYS:
                known[name] = plain(value)  # Axolotl's mapping has every attribute, also those that pydantic looks for
            elif name != "own" and owner_of_key(name):
                own[name] = value
            elif name != "own":
                raise ValueError(unknown_key(name, BLOCK_KEYS))
        return {**known, "own": own} if own else known


_FIELDS: dict[str, Any] = {
    name: (Any, Field(default=None, json_schema_extra={"description": meaning})) for name, meaning in block_keys()
}
SePOBlock = create_model("SePOBlock", __base__=_Block, **_FIELDS)


class SePOConfig(BaseModel):
    """Fields that the plugin adds to Axolotl's config."""

    sepo: SePOBlock | None = Field(  # type: ignore[valid-type]
        default=None, json_schema_extra={"description": "Settings of a sepo stage."}
    )
    router_aux_loss_coef: float | None = Field(
        default=None, json_schema_extra={"description": HOST_KEYS["moe_aux_loss_coef"].help}
    )


@dataclass
class SePOTrainingArguments:
    """Fields that the plugin adds to Axolotl's training arguments.

    Attributes:
        sepo: the keys that the stage was resolved from, as JSON; None if the run has no sepo stage.
        sepo_stop_ids: in stage `rto`, the tokens that end a response.
    """

    sepo: str | None = field(default=None, metadata={"help": "Keys of a sepo stage, as JSON."})
    sepo_stop_ids: list[int] | None = field(default=None, metadata={"help": "Tokens that end a response."})
