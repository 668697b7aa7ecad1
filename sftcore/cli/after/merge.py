"""`sftcore merge`: merge an adapter into its base model, and verify the result before it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sftcore.cli.recipe_arguments import takes_dtype, takes_run
from sftcore.core.visible import visible

if TYPE_CHECKING:
    from sftcore.tools.saved import SavedRun


@click.command("merge")
@takes_run
@click.option(
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder for the merged model. Default: RUN-merged.",
)
@takes_dtype
@click.option("--max-shard-size", default="5GB", show_default=True, help="Maximum size of a file of weights.")
@click.option("--overwrite", is_flag=True, help="Replace whatever is in the output folder.")
@click.option("--push-to-hub", metavar="REPO_ID", help="Upload the merged model to the hub. By default it stays local.")
@click.option("--push-dry-run", is_flag=True, help="With --push-to-hub: only list what would be uploaded.")
@click.option("--private", is_flag=True, help="With --push-to-hub: create a private repository.")
def command(
    run: str,
    opened: Callable[[], SavedRun],
    output: Path | None,
    dtype: str,
    max_shard_size: str,
    overwrite: bool,
    push_to_hub: str | None,
    push_dry_run: bool,
    private: bool,
) -> None:
    """Merge the adapter of RUN into its base model, so that the result loads without PEFT.

    RUN is a run's output folder, a checkpoint in it, or the folder of any PEFT adapter. The adapter is merged in
    float32. The logits of the merged model are compared with those of the unmerged one, both before and after saving;
    if they differ, nothing is kept.
    """
    for name, given in (("--private", private), ("--push-dry-run", push_dry_run)):
        if given and not push_to_hub:
            raise click.UsageError(f"{name} needs --push-to-hub REPO_ID.")
    saved = opened()
    folder = output or Path(f"{run.rstrip('/')}-merged")
    from sftcore.tools.merge import merge, refuse_merge

    refuse_merge(saved, folder, overwrite=overwrite)
    if push_to_hub:
        from sftcore.tools.push import refuse_name, refuse_push

        if push_dry_run:
            refuse_name(push_to_hub, where=f"--push-to-hub {push_to_hub}")
        else:
            refuse_push(push_to_hub)
    merged = merge(
        saved,
        folder,
        dtype=dtype,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        say=lambda line: click.echo(visible(line), err=True),
    )
    for note in merged.notes:
        click.echo(visible(f"note: {note}"), err=True)
    click.echo(visible(f"merged model saved in {merged.folder} ({merged.dtype})"))
    if push_to_hub:
        from sftcore.tools.push import push, would_push

        if push_dry_run:
            for line in would_push(merged.folder, push_to_hub, private=private):
                click.echo(visible(line))
            return
        click.echo(f"pushed to {push(merged.folder, push_to_hub, private=private)}")
