"""Joins the distilled sets of several sites into one, so that a classifier can be trained on all of them.

    histodistill merge runs/site_a runs/site_b --names north south --output merged

A site is a run folder or a distilled set itself; all must have the same classes, image size and columns. The result is
a distilled set too: rows grouped by class, within a class by site, and a column that names the site. Its card and its
record say what came from where. The tiles, pools and models of the sites are not needed.
"""

from __future__ import annotations

from pathlib import Path

from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


@config
class MergeConfig(StepConfig):
    """Options of `merge`."""

    sites: tuple[Path, ...] = option(
        "run folder with distilled/, or a distilled set itself", positional=True, metavar="SITE", setting=False
    )
    output: Path = option("folder for the merged set", setting=False, claimed=True)
    names: tuple[str, ...] | None = option(
        "what to call the sites, in their order; this is published; default: the names of their folders",
        default=None,
        metavar="NAME",
    )

    def check(self) -> None:
        """Checks that there are two sites or more, each with a name of its own."""
        if len(self.sites) < 2:
            sites = " ".join(map(str, self.sites))
            raise InputError(f"{param('sites')}={sites} is the only one: name at least two sites to merge")
        if self.names is None:
            return
        names = " ".join(self.names)
        if len(self.names) != len(self.sites):
            raise InputError(f"{param('names')}={names} does not fit {len(self.sites)} sites: give one name for each")
        if len(set(self.names)) < len(self.names) or not all(name.strip() for name in self.names):
            raise InputError(
                f"{param('names')}={names} has a name twice or an empty one: give each site a name of its own"
            )


def make_parser() -> StepParser[MergeConfig]:
    """The parser of the command line."""
    return StepParser(MergeConfig, prog="histodistill merge", description=__doc__)


@claiming
def run(config: MergeConfig) -> Path:
    """Reads all sites, checks them against each other, and writes the merged set.

    Returns:
        The folder, which `load_dataset` opens.

    Raises:
        InputError: For a folder that is no site, sites that do not fit each other, or an output folder that holds
            something else.
    """
    from histodistill.training.distillation.site_sets import read_sites, write_merged
    from histodistill.training.running.stages import Stage, fingerprint

    sites = read_sites(config.sites, config.names, config.output)
    contents = {f"site_{number}": fingerprint(site.facts) for number, site in enumerate(sites, 1)}
    # The names as they came out: those of the folders are settings too where none were given.
    stage = Stage(config.output, {"stage": "merged", "names": [site.name for site in sites], **contents})
    stage.require_own_folder()
    if stage.complete and (config.output / "README.md").is_file():
        print(f"merge: {config.output} is already finished")
        return config.output
    stage.begin()
    num_images = write_merged(config.output, sites)
    stage.finish(num_images=num_images, sites=[site.facts for site in sites])
    print(f"merge: {num_images} images of {len(sites)} sites saved to {config.output}")
    return config.output


if __name__ == "__main__":
    run_script(make_parser, run)
