"""The options that every command that publishes has."""

from __future__ import annotations

import re

from histodistill.training.running.options import StepConfig, config, option, require


# The Hub's rule for names, at most 80 characters of the 96 that it allows: a suffix such as -selector is added.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|[._-](?=[A-Za-z0-9])){0,79}")
# The same in words, for messages.
_NAME_RULE = "it must be letters and digits with single . _ - between them"


@config
class HubConfig(StepConfig):
    """Where on the Hub repositories are, and whether they go there."""

    namespace: str = option("your name on the Hub, or that of an organisation", setting=False)
    push: bool = option("upload; without it nothing leaves this machine", default=False, setting=False)
    public: bool = option("let everybody see the repositories", default=False, setting=False)
    revision_tag: str | None = option("tag of this version, such as v1", default=None, metavar="TAG", setting=False)

    def check(self) -> None:
        """Checks that the Hub can take the names."""
        require_hub_name("namespace", self.namespace)
        require_hub_name("revision_tag", self.revision_tag)


def require_hub_name(name: str, value: str | None) -> None:
    """Checks that a parameter is a name that the Hub can take.

    Args:
        name: Of the parameter.
        value: Its value; None is no name and needs none.

    Raises:
        InputError: If it is not.
    """
    require(value is None or bool(_NAME.fullmatch(value)), name, value, _NAME_RULE)
