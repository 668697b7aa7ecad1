from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from sftcore import LoadedModel, ModelError, hookimpl, plugin


@plugin
class Zip:
    """Models in one .zip file that holds what save_pretrained writes, or in the folder that it was unpacked to."""

    @hookimpl
    def loads(self, request):
        return (request.name or "").endswith(".zip")

    @hookimpl
    def claims(self):
        return ["model.load"]

    @hookimpl
    def load_processor(self, request):
        from transformers import AutoTokenizer

        with _unpacked(request) as folder:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=request.trust_remote_code)

    @hookimpl
    def load_model(self, request, options):
        from transformers import AutoModelForCausalLM

        # options hold what the recipe and other plugins want of from_pretrained, `init_kwargs` among it
        known = {"dtype": request.dtype, "trust_remote_code": request.trust_remote_code}
        with _unpacked(request) as folder:
            model = AutoModelForCausalLM.from_pretrained(folder, **known, **options.kwargs)
        model.name_or_path = request.name  # what adapters name as their base
        return LoadedModel(model, None, request)


@contextmanager
def _unpacked(request):
    """A folder with the files, for as long as they are read; zipfile writes none outside it, whatever their names."""
    where = f"model {request.name}"
    if request.revision not in (None, "main"):
        raise ModelError("a file has no revisions.", where=where, fix="Leave the revision out.")
    if Path(request.name).is_dir():
        yield request.name
        return
    with TemporaryDirectory(prefix="sftcore-zip-") as folder:
        try:
            with ZipFile(request.name) as archive:
                archive.extractall(folder)
        except (OSError, BadZipFile) as error:
            raise ModelError(f"it cannot be unpacked: {error}.", where=where) from error
        yield folder
