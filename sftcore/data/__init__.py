"""From rows to token rows: formats, tokenizing, masks, packing, images, batches and the cache."""
