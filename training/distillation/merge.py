"""Joins the distilled sets of several sites into one, so that a classifier can be trained on all of them.

    histodistill merge runs/site_a runs/site_b --names north south --output merged

A site is a run folder or a distilled set itself; all must have the same image size and columns. Classes are matched by
their names; --rename north:tumour=tumor gives a class the name that it has elsewhere. The result is a distilled set
too: rows grouped by class, within a class by site, and a column that names the site. Its card and its record say what
came from where. The tiles, pools and models of the sites are not needed.

--shares north=2 south=1 takes twice as many images of north as of south, of each class: those that were chosen first.

The verdict of a site's audit comes with its set (audit.json in the folder of the set), and goes into the record of the
merged set. `histodistill audit merged` then judges this, and `histodistill publish merged` publishes it.
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
    shares: tuple[str, ...] = option(
        "images of each site in this proportion, in each class: as many as the site with the fewest has; default: all",
        default=(),
        metavar="NAME=NUMBER",
    )
    rename: tuple[str, ...] = option(
        "what to call a class of a site, so that it is the same as another's", default=(), metavar="NAME:OLD=NEW"
    )
    keep_all_classes: bool = option("keep classes that only some sites have", default=False)

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

    sites = read_sites(
        config.sites,
        config.names,
        config.output,
        shares=config.shares,
        renames=config.rename,
        keep_all_classes=config.keep_all_classes,
    )
    records = [None if site.record is None else site.record.model_dump(mode="json") for site in sites]
    contents = {
        f"site_{number}": fingerprint(site.facts | ({} if record is None else {"record": record}))
        for number, (site, record) in enumerate(zip(sites, records, strict=True), 1)
    }
    # The names as they came out: those of the folders are settings too where none were given. Shares are in the facts
    # of the sites.
    names = [site.name for site in sites]
    renamed = {"rename": list(config.rename)} if config.rename else {}
    stage = Stage(config.output, {"stage": "merged", "names": names, **renamed, **contents})
    stage.require_own_folder()
    if stage.complete and (config.output / "README.md").is_file():
        print(f"merge: {config.output} is already finished")
        return config.output
    stage.begin()
    num_images, digest = write_merged(config.output, sites)
    facts = [site.facts for site in sites]
    stage.finish(num_images=num_images, data_sha256=digest, sites=facts, records=records)
    print(f"merge: {num_images} images of {len(sites)} sites saved to {config.output}")
    if without := [site.name for site in sites if site.record is None]:
        print(f"merge: no record of an audit came with the set of {', '.join(without)}, so this may not be published")
    return config.output


if __name__ == "__main__":
    run_script(make_parser, run)
