"""Measures what differential privacy costs, and what makes it usable: a denoiser for each ε and each way to train it.

    python -m histodistill.training.benchmarks.dp_study --data phantom --output runs/dp --epsilons 1 4 10 inf

An autoencoder is made of public tiles (--public-data), once. Then, for each ε and each arm, a denoiser is trained on
the tiles of --data under that budget, whose unit is a patient where tiles have groups, and else a tile; δ is
1 / (10 N) for N of them. inf is without differential privacy. The arms are

    scratch       begins with random weights
    pretrained    begins from a denoiser of the public tiles, which spends nothing
    embeddings    the same, of which the embeddings of classes and the scales and shifts of norms alone are trained
    adapters      the same as embeddings, and low-rank matrices beside the other weights, to which they are added
    noisy         the same as pretrained, on more noise (mean of the logits 1), by which what is large is learned
    middle        the same as pretrained, on noise levels from 0.3 to 0.8 alone
    batches       the same as pretrained, in a quarter of the steps of four times as many tiles
    central       the same as pretrained, after noisy mean latents of each class, which have a part of the budget

Of each a pool is made, and of that sets, chosen by kernel herding in the features of an untrained network. A ConvNet
is trained on each of these, on real tiles, and on a pool of the public denoiser as it is, where its classes are the
same, with one recipe, and scored on real validation and test tiles. An attacker who holds the weights tries to tell
who was trained on, by group where tiles have groups.

What is finished is kept, so a killed study goes on where it was; further --epsilons, --arms and --seeds may be added.
Leaves `dp.json`, `dp.md`, and for each denoiser a folder in `arms/` with `pool.png`, images of each class.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from histodistill.training.end_to_end.distill import PUBLIC_TILES
from histodistill.training.evaluation.plans import require_once
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepConfig, StepParser, config, option, require, run_script
from histodistill.training.running.presets import PRESET_NAMES, load_preset, preset_name
from histodistill.training.running.training_options import AUDIT_SHARE_HELP, precision_option


#: The arms, and how a table calls them.
ARMS = {
    "scratch": "from scratch",
    "pretrained": "from public tiles",
    "embeddings": "from public tiles, embeddings and norms alone",
    "adapters": "from public tiles, low-rank adapters",
    "noisy": "from public tiles, on more noise",
    "middle": "from public tiles, on middle noise levels alone",
    "batches": "from public tiles, in batches four times as large",
    "central": "from public tiles, central images first",
}


@config
class DpStudyConfig(StepConfig):
    """Options of `dp_study`."""

    data: str | Path = option("the real tiles, with a validation and a test split", default="phantom", setting=False)
    output: Path = option("folder for all that is made", setting=False, claimed=True)
    public_data: str | Path = option("public tiles, for autoencoder and pretraining: any source", default=PUBLIC_TILES)
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None, setting=False)
    epsilons: tuple[str, ...] = option(
        "budgets, each above 0, or inf for none", default=("1", "4", "10", "inf"), setting=False
    )
    arms: tuple[str, ...] = option(
        "ways to train", default=("scratch", "pretrained", "embeddings"), choices=tuple(ARMS), setting=False
    )
    preset: str = option(
        f"{', '.join(PRESET_NAMES)} or a .toml file: of the models and the pool, and how public ones are trained",
        default="cpu-demo",
    )
    autoencoder_steps: int | None = option("steps of the autoencoder; default: preset", default=None, at_least=1)
    public_steps: int | None = option("steps of the public denoiser; default: preset", default=None, at_least=1)
    steps: int = option("steps of each denoiser on the real tiles", default=300, at_least=4)
    batch_size: int = option("tiles of a step of each denoiser on the real tiles", default=64, at_least=1)
    learning_rate: float = option("of each denoiser on the real tiles", default=1e-3, above=0)
    views: int = option("augmented views of a tile, where training is private", default=1, at_least=1)
    per_class: int = option("pool images of each class", default=200, at_least=1)
    n_per_class: tuple[int, ...] = option("images of each class in the sets", default=(100, 10), at_least=1)
    classifier_steps: int = option("steps of each ConvNet", default=300, at_least=1)
    seeds: tuple[int, ...] = option("of the ConvNets, one training each", default=(0,), at_least=0, setting=False)
    audit_share: float = option(AUDIT_SHARE_HELP, default=0.1, above=0, below=1)
    weight_tiles: int = option("tiles of either kind that the attacker asks about", default=500, at_least=2)
    seed: int = option("of all but the ConvNets, and but for the secret key", default=0, at_least=0, below=2**31)
    mixed_precision: str = precision_option()

    def check(self) -> None:
        """Checks preset, budgets, sizes, and that nothing is named twice."""
        load_preset(self.preset)
        for name in ("epsilons", "arms", "n_per_class", "seeds"):
            require_once(name, getattr(self, name))
        _ = self.budgets
        rule = f"each must be at most {self.per_class}, the pool's images of each class"
        require(max(self.n_per_class) <= self.per_class, "n_per_class", self.n_per_class, rule)
        if str(self.data) == str(self.public_data):
            raise InputError(
                f"{param('public_data')}={self.public_data} are the very tiles that are to be protected: give others"
            )

    @property
    def budgets(self) -> dict[str, float | None]:
        """ε of each text, None for no differential privacy."""
        return {text: _read_epsilon(text) for text in self.epsilons}


def _read_epsilon(text: str) -> float | None:
    try:
        epsilon = float(text)
    except ValueError:
        epsilon = math.nan
    if not epsilon > 0:
        raise InputError(f"{param('epsilons')}={text} is out of range: each must be a number above 0, or inf")
    return None if math.isinf(epsilon) else epsilon


def make_parser() -> StepParser[DpStudyConfig]:
    """The parser of the command line."""
    return StepParser(DpStudyConfig, prog="python -m histodistill.training.benchmarks.dp_study", description=__doc__)


@claiming
def run(config: DpStudyConfig) -> dict[str, Any]:
    """Makes what is missing, and writes the tables.

    Returns:
        What dp.json holds: the name of the data, the settings, `real`, `public` and `arms`, as `dp_arms` returns them.

    Raises:
        InputError: For tiles that cannot be used so, a budget out of reach, a folder of another study, or where Opacus
            or peft is needed and not installed.
    """
    from histodistill.training.benchmarks.dp_arms import PublicModels, make_arm, score_public, score_real
    from histodistill.training.benchmarks.dp_table import study_text
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.engine.privacy import load_opacus
    from histodistill.training.models.adapters import load_peft
    from histodistill.training.running.files import write_json, write_text
    from histodistill.training.running.stages import Stage

    # At once, and not after the hours that arms take before the one that needs it.
    if any(epsilon is not None for epsilon in config.budgets.values()):
        load_opacus()
    if "adapters" in config.arms:
        load_peft()
    source = load_tiles(config.data, image_size=config.image_size, audit_share=config.audit_share)
    settings = {"stage": "dp study", "data": source.fingerprint(), **config.settings()}
    settings |= {"preset": preset_name(config.preset), "public_data": str(config.public_data)}
    stage = Stage(config.output, settings, remedy=f"give another {param('output')}, or delete it")
    stage.begin()

    public = PublicModels.make(config, source)
    real, of_public = score_real(config, source), score_public(config, source, public)
    stage.save_progress()
    arms = []
    for text, epsilon in config.budgets.items():
        for arm in config.arms:
            print(f"{arm}, ε = {text}", flush=True)
            arms.append(make_arm(config, source, public, arm, text, epsilon))
            stage.save_progress()
    results = {"data": source.name, "settings": stage.settings, "real": real, "public": of_public, "arms": arms}
    write_json(config.output / "dp.json", results)
    text = study_text(real, of_public, arms, config.n_per_class, ARMS)
    write_text(config.output / "dp.md", text)
    print(text)
    stage.finish(num_arms=len(arms))
    return results


if __name__ == "__main__":
    run_script(make_parser, run)
