"""Publishes a run on the Hugging Face Hub: its pipeline, its selector and its distilled set, each with a card.

    histodistill publish runs/phantom --preview cards           writes the cards as pages to look at
    histodistill publish runs/phantom --namespace you           shows what would go up
    histodistill publish runs/phantom --namespace you --push    does it

Repositories are private unless --public is given. Only files of a fixed list go up; the rest of a run stays here.
Each repository changes by one commit, and one that is as it should be by none, so the same command can be run again at
any time. Nothing goes up without a passing privacy audit of exactly the files to be published (RUN/audit.json). The
token is taken from HF_TOKEN or from `hf auth login`.

A set that `merge` joined is published by itself, with a card of its own, after `histodistill audit` on it:

    histodistill publish merged --namespace you --name colon

A preview needs neither token nor namespace nor network, and uploads nothing. It shows what the audit would refuse as
well, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.publishing.hub_config import HubConfig, require_hub_name
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepParser, config, like, option, run_script


if TYPE_CHECKING:
    from histodistill.hub_cards import Published, Upload
    from histodistill.training.publishing.repositories import Repository

#: What of a run can be published, in the order in which the repositories refer to each other.
KINDS = ("pipeline", "selector", "dataset")
# What stands for the namespace in a preview where none is given.
_PLACEHOLDER = "you"


@config
class PublishConfig(HubConfig):
    """Options of `publish`."""

    namespace: str | None = like(  # type: ignore[assignment]  # a preview needs none
        HubConfig,
        "namespace",
        default=None,
        help="your name on the Hub, or that of an organisation; a preview needs none",
    )
    run: Path = option("folder of a finished run, or a merged set", positional=True, also_named=True, setting=False)
    name: str | None = option(
        "what to call the source in the names of the repositories and on the cards; default: the source's own "
        "name where it is known to everybody (phantom and those of MedMNIST)",
        default=None,
    )
    only: tuple[str, ...] = option("what to publish", default=KINDS, choices=KINDS)
    license: str | None = option(
        "licence identifier of the Hub, such as cc-by-4.0; default: MedMNIST's own", default=None
    )
    attribution: str | None = option("whom to credit for the tiles; default: MedMNIST's own", default=None)
    audit: Path | None = option("the audit; default: RUN/audit.json", default=None, setting=False)
    i_accept_the_risk: bool = option(
        "publish without a passing audit; the first lines of the cards will say so", default=False
    )

    preview: Path | None = option(
        "write the cards as HTML pages to this folder, and upload nothing",
        default=None,
        metavar="DIR",
        setting=False,
        claimed=True,
    )

    def check(self) -> None:
        """Checks that the Hub can take name and licence, and that what is asked for goes together."""
        super().check()
        if self.namespace is None and self.preview is None:
            raise InputError(f"{param('namespace')} is missing: give your name on the Hub, or only {param('preview')}")
        if self.preview is not None and self.push:
            raise InputError(f"{param('preview')} uploads nothing and {param('push')} does: give one of them")
        require_hub_name("name", self.name)
        from histodistill.training.models.encoder_licences import check_licence

        check_licence("license", self.license)


def make_parser() -> StepParser[PublishConfig]:
    """The parser of the command line."""
    return StepParser(PublishConfig, prog="histodistill publish", description=__doc__)


@claiming
def run(config: PublishConfig) -> list[Upload] | list[Published]:
    """Puts the repositories together, past the gate, and shows or uploads them.

    Returns:
        What became of each repository; without `push`, each as it would go up.

    Raises:
        InputError: If a stage is missing, the gate refuses, a file holds what may not leave, something stands in the
            way of uploading, or the folder of a preview holds something else.
    """
    from histodistill.training.running.stages import is_merged, require_parts

    # Before the libraries are imported, which takes seconds.
    merged = is_merged(config.run)
    if not merged:
        require_parts(config.run, "distilled", "pool", *(["pipeline"] if "pipeline" in config.only else []))

    from histodistill.training.publishing.preview import INDEX, require_preview_folder, write_preview
    from histodistill.training.publishing.pushing import show_or_push

    if config.preview is not None:
        require_preview_folder(config.preview)
    repositories = (_of_merged_set if merged else _of_run)(config)
    uploads = [repository.upload for repository in repositories]
    if config.preview is None:
        return show_or_push(uploads, config)
    write_preview(config.preview, repositories)
    refused = [repository.upload.repo_id for repository in repositories if repository.refusal is not None]
    if refused:
        print(f"Publishing would refuse {', '.join(refused)}: the pages say why.")
    print(f"Nothing was uploaded. Look at the cards: {config.preview / INDEX}")
    return uploads


def _of_run(config: PublishConfig) -> list[Repository]:
    """The repositories of a run."""
    from histodistill.training.publishing.repositories import collect_repositories

    return collect_repositories(
        config.run,
        config.namespace or _PLACEHOLDER,
        config.only,
        name=config.name,
        license=config.license,
        attribution=config.attribution,
        audit_file=config.audit,
        accept_risk=config.i_accept_the_risk,
        show_refused=config.preview is not None,
    )


def _of_merged_set(config: PublishConfig) -> list[Repository]:
    """The repository of a merged set.

    Raises:
        InputError: For options that are about runs alone, and as `merged_repository` does.
    """
    from histodistill.training.publishing.merged_repository import merged_repository

    if config.i_accept_the_risk:
        raise InputError(
            f"{param('i_accept_the_risk')} is for a run of your own, and {config.run} has images of other sites: "
            "leave it out, and merge sets that passed"
        )
    if config.audit is not None:
        raise InputError(f"{param('audit')}={config.audit} is for a run: a merged set has its own, so leave it out")
    if "dataset" not in config.only:
        raise InputError(f"{param('only')}={' '.join(config.only)} leaves nothing of a merged set: give dataset")
    if config.name is None:
        raise InputError(f"{param('name')} is missing: say what to call the tiles of all sites of {config.run}")
    repository = merged_repository(
        config.run,
        f"{config.namespace or _PLACEHOLDER}/{config.name}",
        license=config.license,
        attribution=config.attribution,
        show_refused=config.preview is not None,
    )
    return [repository]


if __name__ == "__main__":
    run_script(make_parser, run)
