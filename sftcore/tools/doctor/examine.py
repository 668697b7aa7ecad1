"""All that the doctor looks at, in the order in which it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sftcore.tools.doctor.environment import environment_lines
from sftcore.tools.doctor.line import Line
from sftcore.tools.doctor.machine import device_lines, disk_lines, this_machine, usual_places
from sftcore.tools.doctor.plugins import plugin_lines
from sftcore.tools.doctor.versions import version_lines

if TYPE_CHECKING:
    from sftcore.config.recipe import Recipe


def examine(recipe: Recipe | None = None) -> list[Line]:
    """What is right and wrong with this machine, and with what the run of a recipe needs.

    Without a recipe nothing heavy is imported, unless a third party's plugin does. With one, its rows are prepared as
    its run would, if nothing is wrong before that.
    """
    machine = this_machine()
    lines = [*device_lines(machine), *environment_lines(machine), *plugin_lines()]
    # how many processes a run has is not known where the launcher contradicts itself
    if recipe is None or any(one.area == "launcher" and one.status == "error" for one in lines):
        places = [*usual_places(), ("the current folder", Path.cwd(), 0)]
        return [*version_lines(), *lines, *disk_lines(places)]
    from sftcore.tools.doctor.of_recipe import (
        check_lines,
        hub_lines,
        need_lines,
        needed_distributions,
        precision_lines,
    )

    found, checked = check_lines(recipe)
    versions = version_lines(needed=needed_distributions(checked))
    hub, precision = hub_lines(recipe), precision_lines(recipe, machine)
    lines = [*versions, *lines, *found, *precision, *hub]
    # nothing can be estimated of a run that does not start
    if checked is None or any(one.status == "error" for one in (*versions, *hub, *precision)):
        from sftcore.train.run import output_dir

        return [*lines, *disk_lines([*usual_places(), ("output_dir", output_dir(recipe), 0)])]
    return [*lines, *need_lines(checked, machine)]
