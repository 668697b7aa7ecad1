"""What plugins may use besides `sftcore` and `sftcore.rows`: readers of plans, and parts that built-ins are made of.

Names are imported on first use, so that a plugin's module stays light; those marked * import torch or transformers when
they are called. Nothing else in sftcore is meant for plugins: it may move without notice.

| for | names |
|---|---|
| formats | `IGNORED`, the label of a token that does not count; `IMAGE`, the place of an image in a text |
| collators | `pad_rows`*, `flatten_rows`*, `filler_of`, `multiple_of` |
| collators of images | `DOCUMENTS`, `MAX_PIXELS`, `open_image`, `facts_of_processor`* |
| formats and collators of videos, sounds and other media | `Modality`, `Medium`, `Video`, `reference`, `facts_of`, |
| | `media_features`* |
| attentions | `edges_of`*, `planned_device`, `unsupported` |
| kernels | `decoder_layers`* |
| losses | `OwnLoss`, of a plugin that leaves the loss to the model |
| kernels, losses | `triton_is_interpreted` |
| losses | `loss_call`: what the model was called with, and what gathers a teacher's states at the loss's positions |
| loaders | `refuse_endless`: regular expressions of a saved adapter that would be matched without end |
| loaders, adapters | `adapter_folder`, `quantisation_asked_for`, `quantisation_of`*, `prepare_quantised`* |
| adapters | `declared_fields`, `selective_of`, `vision_parts`*, `is_plain_linear`*, `is_hooked`* |
| adapters, losses | `product`*: of matrices, by the library that is faster on this CPU |
| errors | `nearest`, the closest of some names, as a question |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftcore.util.lazy import lazy_names

if TYPE_CHECKING:
    from sftcore.chat.sandbox.patterns import refuse_endless
    from sftcore.config.attention import planned_device, unsupported
    from sftcore.config.checks import selective_of
    from sftcore.config.probe import adapter_folder, quantisation_asked_for
    from sftcore.config.settings.declared import declared_fields
    from sftcore.core.errors import nearest
    from sftcore.core.types import IGNORED, IMAGE
    from sftcore.data.collate import filler_of, flatten_rows, multiple_of, pad_rows
    from sftcore.data.host_facts import edges_of
    from sftcore.data.images.pictures import DOCUMENTS
    from sftcore.data.images.processors import facts_of_processor
    from sftcore.data.images.reference import MAX_PIXELS, open_image
    from sftcore.data.media.features import media_features
    from sftcore.data.media.modality import Medium, Modality, facts_of, reference
    from sftcore.data.media.video import Video
    from sftcore.losses.loss_call import loss_call
    from sftcore.losses.own_loss import OwnLoss
    from sftcore.model.memory.layers import decoder_layers
    from sftcore.model.precision import prepare_quantised, quantisation_of
    from sftcore.model.products.onednn import is_hooked, is_plain_linear, product
    from sftcore.model.vision import vision_parts
    from sftcore.util.triton import triton_is_interpreted

__all__ = [
    "DOCUMENTS",
    "IGNORED",
    "IMAGE",
    "MAX_PIXELS",
    "Medium",
    "Modality",
    "OwnLoss",
    "Video",
    "adapter_folder",
    "declared_fields",
    "decoder_layers",
    "edges_of",
    "facts_of",
    "facts_of_processor",
    "filler_of",
    "flatten_rows",
    "is_hooked",
    "is_plain_linear",
    "loss_call",
    "media_features",
    "multiple_of",
    "nearest",
    "open_image",
    "pad_rows",
    "planned_device",
    "prepare_quantised",
    "product",
    "quantisation_asked_for",
    "quantisation_of",
    "reference",
    "refuse_endless",
    "selective_of",
    "triton_is_interpreted",
    "unsupported",
    "vision_parts",
]

__getattr__, __dir__ = lazy_names(__name__)
