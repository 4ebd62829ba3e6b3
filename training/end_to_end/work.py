"""How much work the steps of a distillation are: which kinds of it, and how much of each, reckoned from their options.

A kind of work is named in words, such as "train denoiser". What one unit of it costs on a machine is measured
(`measuring`) or roughly known (`rough_cost`): the time of a step is the sum of units times what each costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from histodistill.selection.names import SYMMETRIES
from histodistill.training.end_to_end.steps import StageCall
from histodistill.training.engine.looks import NOISE_LEVELS, SCALE_TILES, SHOWN_PER_CLASS, SHOWN_STEPS, telling_number
from histodistill.training.evaluation.compare import recipes
from histodistill.training.models.architectures import DEFAULT_WIDTHS, WITH_MAPS, is_probe
from histodistill.training.models.encoder_names import TEACHER, UNTRAINED


# One tile, or crop of a tile, in a step of the autoencoder's training; one tile that is encoded, or decoded.
TRAIN_AUTOENCODER, ENCODE, DECODE = "train autoencoder", "encode", "decode"
# One tile in a step of the denoiser's training; one latent that it is asked about otherwise; one image of the pool,
# with all its denoising steps, decoded and written.
TRAIN_DENOISER, DENOISE, GENERATE = "train denoiser", "denoise", "generate"
# One image whose features in a network with random weights are taken, or its latents, or by an encoder from elsewhere,
# whose name follows.
EMBED_UNTRAINED, EMBED_LATENTS, EMBED_OTHER = "embed untrained", "embed latents", "embed by "
# One image that is compared with the real tiles, beside its embeddings; one real tile that is made ready for that.
COMPARE, INDEX = "compare with real tiles", "index real tiles"
# One image of the pool that is put into a graph and a community.
SELECT = "select"
# One start of a process with all its libraries; the attacks of an audit, which depend on no number.
START, ATTACK = "start", "attack"
# Bytes of a number of a latent or a feature that is kept.
_BYTES_KEPT = 2


def train_of(architecture: str, width: int | None) -> str:
    """The kind of work of one tile in a step of a classifier's training."""
    return f"train {architecture} {width or DEFAULT_WIDTHS.get(architecture, '')}".rstrip()


def predict_of(architecture: str, width: int | None) -> str:
    """The kind of work of one tile that a classifier is asked about."""
    return f"predict {architecture} {width or DEFAULT_WIDTHS.get(architecture, '')}".rstrip()


def embed_of(name: str | Path, configs: Mapping[str, Any]) -> str:
    """The kind of work of one image that is embedded.

    Args:
        name: What `load_embedder` takes, or `TEACHER`.
        configs: Folder of a step → its options.
    """
    if name == UNTRAINED:
        return EMBED_UNTRAINED
    teacher = configs["teacher"]
    if name == TEACHER or Path(name) == teacher.output:
        return predict_of(teacher.recipe.architecture, teacher.recipe.width)
    return EMBED_LATENTS if Path(name) == configs["autoencoder"].output else f"{EMBED_OTHER}{Path(name).name}"


def embedders_of(configs: Mapping[str, Any]) -> list[str | Path]:
    """What the pool is embedded with, to select from it and to look for copies in it, each once."""
    selection, audit = configs["distilled"], configs["audit"]
    copies = selection.copy_embedders if selection.drop_copies else ()
    return list(dict.fromkeys([selection.embedder, *copies, *audit.spaces]))


def wanted_bytes(configs: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of what the denoiser's training would keep in the cache of tiles: latents, and features to draw it to.

    Args:
        configs: Folder of a step → its options.
        run: What run.json holds: image_size and num_tiles are looked at, and where it was measured, latent_shape.
    """
    denoiser, autoencoder, teacher = configs["pipeline"], configs["autoencoder"], configs["teacher"].recipe
    if denoiser.latent_cache == "off":
        return 0, 0
    tiles = run["num_tiles"]["train"]
    views = (SYMMETRIES if denoiser.symmetries else 1) * tiles
    own_side = run["image_size"] // 2 ** (len(autoencoder.channels) - 1)
    channels, side, _ = run.get("latent_shape") or (autoencoder.latent_channels, own_side, own_side)
    # Latents of more views than are shown are not kept.
    latents = views * channels * side**2 if tiles_shown(denoiser) >= views else 0
    features = 0
    if denoiser.align is not None and teacher.architecture in WITH_MAPS:
        # Of a ResNet, whose later stages are wider, it is the least.
        width = teacher.width or DEFAULT_WIDTHS[teacher.architecture]
        features = tiles * width * (side // 2 ** (len(denoiser.channels) - 1)) ** 2
    return _BYTES_KEPT * latents, _BYTES_KEPT * features


def kept_bytes(configs: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[int, int]:
    """The same, without what is above the limit of the cache; features come first.

    Args:
        configs, run: See `wanted_bytes`.
    """
    # Here, because the help of `distill` takes no library.
    from histodistill.training.data.tile_cache import limit_of_cache

    latents, features = wanted_bytes(configs, run)
    room = limit_of_cache() - 3 * run["image_size"] ** 2 * sum(run["num_tiles"].values())
    features = features if features <= room else 0
    return latents if latents + features <= room else 0, features


def work_of(plan: Sequence[StageCall], run: Mapping[str, Any]) -> dict[str, Counter[str]]:
    """What each step of a distillation does: its folder → kind of work → units.

    Args:
        plan: The steps.
        run: What run.json holds: image_size, num_tiles and class_names are looked at; see also `wanted_bytes`.
    """
    work = _Work({stage.folder: stage.config for stage in plan}, run)
    return {stage.folder: Counter({START: 1}) + getattr(work, stage.folder)() for stage in plan}


class _Work:
    """The work of each step, by a method with the name of its folder.

    Args:
        configs: Folder of a step → its options.
        run: See `work_of`.
    """

    def __init__(self, configs: Mapping[str, Any], run: Mapping[str, Any]):
        self.configs, self.run = configs, run
        self.tiles = Counter(run["num_tiles"])
        self.classes = len(run["class_names"])
        self.image_size = run["image_size"]
        self.autoencoder_options = fitted_autoencoder(configs["autoencoder"], run["image_size"])
        self.images = configs["pool"].per_class * self.classes
        self.published = configs["distilled"].n_per_class * self.classes
        # All that the audit knows, which copies are looked for among.
        self.real = self.tiles["train"] + self.tiles["held_out"] + self.tiles["validation"]

    def autoencoder(self) -> Counter[str]:
        """Its training, validations, the scale of its latents, and what is told of its reconstructions."""
        options = self.autoencoder_options
        shown, whole = tiles_shown(options), self._validated(options)
        if options.is_taken:
            shown = whole = 0
        # In the end it is validated, and looked at beside its tiles.
        whole += 2 * min(self.tiles["validation"], options.validation_tiles)
        scaled = min(self.tiles["train"], SCALE_TILES)
        return Counter({TRAIN_AUTOENCODER: shown, ENCODE: whole + scaled, DECODE: whole})

    def pipeline(self) -> Counter[str]:
        """The denoiser's training, validations with a picture each, and the latents of training tiles."""
        options = self.configs["pipeline"]
        shown = tiles_shown(options)
        pictures = -(-options.max_train_steps // options.validation_steps) * SHOWN_PER_CLASS * self.classes
        validated = self._validated(options)
        views = (SYMMETRIES if options.symmetries else 1) * self.tiles["train"]
        latents, features = kept_bytes(self.configs, self.run)
        aligned: Counter[str] = Counter()
        if options.align is not None:
            teacher = self.configs["teacher"].recipe
            asked = predict_of(teacher.architecture, teacher.width)
            aligned[asked] = self.tiles["train"] if features else shown
        return aligned + Counter(
            {
                TRAIN_DENOISER: shown,
                ENCODE: (views if latents else shown) + min(self.tiles["validation"], options.validation_tiles),
                DENOISE: validated + pictures * SHOWN_STEPS,
                DECODE: pictures,
            }
        )

    def teacher(self) -> Counter[str]:
        """A classifier of all training tiles, and what it says of the autoencoder's reconstructions."""
        recipe_of_teacher = self.configs["teacher"].recipe
        work = self._classifier(recipe_of_teacher, self.tiles["train"])
        if self.configs["teacher"].autoencoder is not None:
            told = min(self.tiles["validation"], telling_number(self.image_size))
            asked = predict_of(recipe_of_teacher.architecture, recipe_of_teacher.width)
            work += Counter({ENCODE: told, DECODE: told, asked: 2 * told})
        return work

    def pool(self) -> Counter[str]:
        """Its images."""
        return Counter({GENERATE: self.images})

    def distilled(self) -> Counter[str]:
        """What the teacher and other networks say of the pool, the search for copies in it, and the selection."""
        options, recipe_of_teacher = self.configs["distilled"], self.configs["teacher"].recipe
        asked = predict_of(recipe_of_teacher.architecture, recipe_of_teacher.width)
        work = Counter({SELECT: self.images})
        for kind in (asked, embed_of(options.embedder, self.configs)):
            work[kind] += self.images
        if options.drop_copies:
            work += self._search(self.images + self.tiles["validation"], options.copy_embedders)
        return work

    def comparison(self) -> Counter[str]:
        """Classifiers on real tiles and distilled ones."""
        options = self.configs["comparison"]
        work: Counter[str] = Counter()
        for cell, how in recipes(options):
            there = self.tiles["train"] if cell.row == "real_all" else self.published
            work += self._classifier(how, there)
        return work

    def audit(self) -> Counter[str]:
        """The search for copies in pool and set, attacks by what is near to them, and that on the weights."""
        options = self.configs["audit"]
        others = self.tiles["held_out"] or self.tiles["validation"]
        attacked = sum(min(options.weight_tiles, count) for count in (self.tiles["train"], others))
        controls = min(self.published, others)
        searched = self.images + self.published + controls + self.tiles["validation"]
        work = self._search(searched, options.spaces)
        return work + Counter({ATTACK: 1, ENCODE: attacked, DENOISE: len(NOISE_LEVELS) * attacked})

    def _search(self, count: int, embedders: Sequence[str]) -> Counter[str]:
        """A search of so many images for copies: they are embedded in all symmetries, and real tiles once."""
        embedded = self.real + SYMMETRIES * count
        work = Counter({COMPARE: count, INDEX: self.real})
        for name in embedders:
            work[embed_of(name, self.configs)] += embedded
        return work

    def _validated(self, options: Any) -> int:
        """Validation tiles that a generative training looks at, over all validations."""
        times = -(-options.max_train_steps // options.validation_steps)
        return times * min(self.tiles["validation"], options.validation_tiles)

    def _classifier(self, options: Any, num_train: int) -> Counter[str]:
        """A classifier's training, validations and test; a probe asks its encoder once about each tile."""
        if is_probe(options.architecture):
            validated = min(self.tiles["validation"], options.validation_tiles)
            return Counter({predict_of(options.architecture, None): num_train + validated + self.tiles["test"]})
        times = -(-options.max_train_steps // options.validation_steps)
        validated = times * min(self.tiles["validation"], options.validation_tiles)
        batch_size = min(options.batch_size, num_train) * options.gradient_accumulation_steps
        return Counter(
            {
                train_of(options.architecture, options.width): options.max_train_steps * batch_size,
                predict_of(options.architecture, options.width): validated + self.tiles["test"],
            }
        )


def fitted_autoencoder(options: Any, image_size: int) -> Any:
    """The autoencoder's options with its crops and steps for tiles of this side in pixels."""
    return options.for_tiles(image_size, 2 ** (len(options.channels) - 1))


def tiles_shown(options: Any) -> int:
    """Tiles in all batches of a training."""
    return options.max_train_steps * options.batch_size * options.gradient_accumulation_steps
