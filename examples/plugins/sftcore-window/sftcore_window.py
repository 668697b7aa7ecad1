import attrs
from attrs.validators import ge

from sftcore import AttentionBackend, hookimpl, plugin


@plugin
class Window:
    """Attention to the last `tokens` tokens alone, the query's own among them, in every layer."""

    tokens: int = attrs.field(default=512, validator=ge(1))

    @hookimpl
    def claims(self):
        return ["attention"]

    @hookimpl
    def attention_backend(self, request):
        # each window has a name of its own: transformers keeps attentions by name, for all models of the process
        return AttentionBackend(f"window_{self.tokens}", exact=False, register=self._register)

    def _register(self):
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(f"window_{self.tokens}", self._attend)
        AttentionMaskInterface.register(f"window_{self.tokens}", sdpa_mask)

    def _attend(self, module, query, key, value, attention_mask, **kwargs):
        """query: (B, H, T, D); key, value: (B, H, S, D); attention_mask: (B, 1, T, S), bool or to be added, or None."""
        import torch
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        queries, keys = query.shape[2], key.shape[2]
        at = torch.arange(keys, device=query.device)
        back = at[keys - queries :, None] - at  # how far behind its query each key is
        mask = (back >= 0) & (back < self.tokens)
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            mask = mask & attention_mask
        elif attention_mask is not None:
            mask = attention_mask.masked_fill(~mask, torch.finfo(attention_mask.dtype).min)
        return sdpa_attention_forward(module, query, key, value, mask.expand(len(query), 1, -1, -1), **kwargs)
