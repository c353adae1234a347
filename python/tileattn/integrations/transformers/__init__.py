"""``attn_implementation="tileattn"`` for Hugging Face transformers.

    import tileattn.integrations.transformers
    model = AutoModel.from_pretrained(name, attn_implementation="tileattn")

Encoders and decoders, padded batches, key/value caches, grouped heads, sliding windows, softcap,
attention sinks and position biases. Importing registers the name, the masks that go with it
(:mod:`.mask`) and a check of the models that ask for it (:mod:`.support`).
"""

from __future__ import annotations

try:
    from transformers import AttentionInterface, AttentionMaskInterface
except ImportError as error:
    raise ImportError(
        "tileattn.integrations.transformers needs transformers >= 5; install it with "
        "`pip install 'tileattn[transformers]'`."
    ) from error

from tileattn.integrations.transformers import support
from tileattn.integrations.transformers.attention import attention_forward
from tileattn.integrations.transformers.mask import TileMask, make_mask
from tileattn.integrations.transformers.support import NAME

__all__ = ["NAME", "TileMask", "attention_forward", "make_mask", "register"]


def register() -> None:
    """Makes ``attn_implementation="tileattn"`` known to transformers; importing does it too."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, make_mask)
    support.install()


register()
