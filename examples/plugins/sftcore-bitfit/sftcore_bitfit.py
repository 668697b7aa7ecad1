import attrs

from sftcore import ModelError, hookimpl, plugin


@plugin
class BitFit:
    """Biases and norms alone are trained, about a thousandth of a model (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    norms: bool = True

    @hookimpl
    def claims(self):
        return ["adapter"]

    @hookimpl
    def wrap_model(self, loaded, plan):
        loaded.model.requires_grad_(False)
        for module in loaded.model.modules():
            whole = self.norms and "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(whole or name.endswith("bias"))
        trained = sum(one.numel() for one in loaded.model.parameters() if one.requires_grad)
        if not trained:
            raise ModelError("the model has no biases to train.", where="adapter.bitfit", fix="Set norms: true.")
        everything = sum(one.numel() for one in loaded.model.parameters())
        note = f"bitfit trains {trained:,} of {everything:,} weights"
        return attrs.evolve(loaded, notes=(*loaded.notes, note))
