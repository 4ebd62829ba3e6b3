"""JSON documents that are published: each is read by a schema, and what goes up is written anew from what was read.

A key that no schema has, a value of another type or out of range, a key twice, NaN: each is refused. So a document
says what it is for, and there is no room for anything else.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.names import fault_of_published_name
from histodistill.hub_cards.part_files import shown
from histodistill.hub_cards.tables import check_names


if TYPE_CHECKING:
    from diffusers import ConfigMixin

_Model = TypeVar("_Model", bound=BaseModel)


class Exact(BaseModel):
    """A document in which every key is known and nothing is converted."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True, populate_by_name=True)


class Known(BaseModel):
    """A document of which the known keys are read, each by its type, and no other key is looked at."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


def only_if(is_right: Callable[[str], bool], otherwise: str) -> AfterValidator:
    """Lets a text through that a test says yes to, and no other.

    Args:
        is_right: The test.
        otherwise: What is said of others, such as "should be the label of an architecture".
    """

    def check(text: str) -> str:
        if not is_right(text):
            raise ValueError(otherwise)
        return text

    return AfterValidator(check)


def plain_name(name: str) -> str:
    """A plain name, the same text; `ValueError` for any other, see `fault_of_published_name`."""
    if fault := fault_of_published_name(name):
        raise ValueError(f"has {fault}")
    return name


#: The name of a class.
ClassName = Annotated[str, AfterValidator(plain_name)]
#: A version of a package.
Version = Annotated[
    str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){0,3}(\.?(a|b|rc|dev|post)[0-9]{1,6}){0,2}(\+[a-z0-9.]{1,24})?$")
]
#: A SHA-256.
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: A seed.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Size = Annotated[int, Field(ge=1, le=2**16)]
_Sizes = Annotated[list[_Size], Field(min_length=1, max_length=16)]


def parse_json(data: bytes, *, infinity: bool = False) -> Any:
    """What a JSON document holds.

    Args:
        data: UTF-8, without a byte order mark.
        infinity: Whether it may hold -Infinity, as documents of diffusers do.

    Raises:
        ContentError: If it is no JSON, has a key twice, or a number that is none.
    """

    def constant(word: str) -> float:
        if infinity and word == "-Infinity":
            return float(word)
        raise ValueError(f"{word} is no number")

    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=constant)
    except RecursionError as error:
        raise ContentError("is nested too deeply") from error
    except ValueError as error:  # of JSON, of UTF-8, or of our own
        raise ContentError(f"is no JSON as it should be ({shown(error)})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return document


def read_document(data: bytes, schema: type[_Model]) -> _Model:
    """A JSON document by its schema.

    Raises:
        ContentError: As for `parse_json`, and for anything that the schema does not have.
    """
    return check_document(parse_json(data), schema)


def check_document(document: Any, schema: type[_Model]) -> _Model:
    """The same of a document that is parsed already."""
    return _checked(document, schema.model_validate_json)


def _checked(document: Any, validate: Callable[[str], Any]) -> Any:
    try:
        # As JSON, in which an array stands for a tuple.
        return validate(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "it"
        raise ContentError(
            f"holds something unknown ({shown(where)}: {shown(first['msg'].removeprefix('Value error, '))})"
        ) from error


def write_document(document: Any, *, sort_keys: bool = True) -> bytes:
    """A JSON document as we write it."""
    return (json.dumps(document, indent=2, sort_keys=sort_keys) + "\n").encode()


# A pipeline.


class PipelineClasses(Exact):
    """What model_index.json says of the parts of a pipeline, and of how they go together."""

    class_name: tuple[Literal["pipeline"], Literal["HistologyPipeline"]] = Field(alias="_class_name")
    scheduler: tuple[Literal["diffusers"], Literal["DPMSolverMultistepScheduler"]]
    unet: tuple[Literal["diffusers"], Literal["UNet2DModel"]]
    vae: tuple[Literal["diffusers"], Literal["AutoencoderDC", "AutoencoderKL", "AutoencoderTiny"]]
    skip_noise: Annotated[float, Field(ge=0, le=100)] = 0.0


class ModelIndex(PipelineClasses):
    """model_index.json: the classes of a pipeline and of its components, all known, and the names of its classes."""

    diffusers_version: Version = Field(alias="_diffusers_version")
    id2label: Annotated[dict[str, ClassName], Field(min_length=1, max_length=10_000)]

    @property
    def class_names(self) -> list[str]:
        """The names; the index is the label."""
        return list(self.id2label.values())

    @property
    def components(self) -> dict[str, str]:
        """Component → its class."""
        return {name: getattr(self, name)[1] for name in ("scheduler", "unet", "vae")}

    def written(self) -> bytes:
        """The file again, byte for byte that of a pipeline as it saves itself: with the keys that were given."""
        return write_document(self.model_dump(mode="json", by_alias=True, exclude_unset=True))


def read_model_index(data: bytes) -> ModelIndex:
    """A pipeline's index.

    Raises:
        ContentError: If it is none.
    """
    index = read_document(data, ModelIndex)
    if sorted(index.id2label, key=lambda label: (len(label), label)) != [str(i) for i in range(len(index.id2label))]:
        raise ContentError("holds labels that are not 0, 1, 2 and so on")
    in_order = {str(i): index.id2label[str(i)] for i in range(len(index.id2label))}
    check_names(list(in_order.values()), "class")
    return index.model_copy(update={"id2label": in_order})


class DenoiserSettings(Exact):
    """What our trainings set of a `UNet2DModel`; all else is as the class has it by default."""

    sample_size: _Size
    in_channels: _Size
    out_channels: _Size
    block_out_channels: _Sizes
    down_block_types: Annotated[list[Literal["DownBlock2D", "AttnDownBlock2D"]], Field(max_length=16)]
    up_block_types: Annotated[list[Literal["UpBlock2D", "AttnUpBlock2D"]], Field(max_length=16)]
    layers_per_block: Annotated[int, Field(ge=1, le=64)]
    attention_head_dim: _Size
    norm_num_groups: _Size
    dropout: Annotated[float, Field(ge=0, lt=1)]
    resnet_time_scale_shift: Literal["scale_shift"]
    num_class_embeds: Annotated[int, Field(ge=2, le=10_001)]


_Counts = Annotated[list[Annotated[int, Field(ge=0, le=64)]], Field(min_length=1, max_length=16)]
_Scales = Annotated[
    list[Annotated[list[Annotated[int, Field(ge=1, le=65)]], Field(max_length=16)]], Field(max_length=16)
]
_Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
_Block = Literal["ResBlock", "EfficientViTBlock"]
_Norm = Literal["rms_norm", "batch_norm"]


class DeepCompressionSettings(Exact):
    """What an `AutoencoderDC` may have: ours, which have no attention blocks, and those from elsewhere."""

    latent_channels: _Size
    attention_head_dim: _Size
    encoder_block_types: _Block | Annotated[list[_Block], Field(max_length=16)]
    decoder_block_types: _Block | Annotated[list[_Block], Field(max_length=16)]
    encoder_block_out_channels: _Sizes
    decoder_block_out_channels: _Sizes
    encoder_layers_per_block: _Counts
    decoder_layers_per_block: _Counts
    encoder_qkv_multiscales: _Scales
    decoder_qkv_multiscales: _Scales
    upsample_block_type: Literal["pixel_shuffle", "interpolate"]
    downsample_block_type: Literal["pixel_unshuffle", "Conv"]
    decoder_norm_types: _Norm | Annotated[list[_Norm], Field(max_length=16)]
    decoder_act_fns: _Activation | Annotated[list[_Activation], Field(max_length=16)]
    decoder_conv_act_fn: _Activation
    encoder_out_shortcut: bool
    decoder_in_shortcut: bool
    scaling_factor: Annotated[float, Field(gt=0)]


class KLSettings(Exact):
    """The same of an `AutoencoderKL`; means and deviations of channels it has none, since we measure one of each."""

    down_block_types: Annotated[list[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]], Field(max_length=16)]
    up_block_types: Annotated[list[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]], Field(max_length=16)]
    block_out_channels: _Sizes
    layers_per_block: Annotated[int, Field(ge=1, le=64)]
    act_fn: _Activation
    latent_channels: _Size
    norm_num_groups: _Size
    sample_size: _Size
    scaling_factor: Annotated[float, Field(gt=0)]
    shift_factor: float
    force_upcast: bool
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool


class TinySettings(Exact):
    """The same of an `AutoencoderTiny`, which also notes the widths of its decoder under another name."""

    encoder_block_out_channels: _Sizes
    decoder_block_out_channels: _Sizes
    block_out_channels: _Sizes | None = None
    num_encoder_blocks: _Counts
    num_decoder_blocks: _Counts
    act_fn: _Activation
    upsample_fn: Literal["nearest", "bilinear", "bicubic"]
    latent_channels: _Size
    scaling_factor: Annotated[float, Field(gt=0)]
    shift_factor: float


class SamplerSettings(Exact):
    """The same of a `DPMSolverMultistepScheduler`."""

    num_train_timesteps: Literal[1000]
    prediction_type: Literal["flow_prediction", "sample"]
    use_flow_sigmas: Literal[True]
    flow_shift: Annotated[float, Field(ge=1, le=2, multiple_of=1)] = 1.0


#: Class of diffusers → what our trainings set of its configuration. A further class is added here on purpose.
SETTINGS: dict[str, type[Exact]] = {
    "UNet2DModel": DenoiserSettings,
    "AutoencoderDC": DeepCompressionSettings,
    "AutoencoderKL": KLSettings,
    "AutoencoderTiny": TinySettings,
    "DPMSolverMultistepScheduler": SamplerSettings,
}
_VERSION: TypeAdapter[str] = TypeAdapter(Version)


def read_config(data: bytes, model: type[ConfigMixin]) -> dict[str, Any]:
    """The configuration of a component of a pipeline.

    Its keys are the parameters of the installed class. What our trainings set has a type and a bound in `SETTINGS`,
    and everything else is what the class has by default.

    Args:
        data: The JSON document.
        model: The class.

    Returns:
        The document as it may be published.

    Raises:
        ContentError: If it says anything else.
    """
    document = parse_json(data, infinity=True)
    if not isinstance(document, dict):
        raise ContentError("is no configuration")
    rest = dict(document)
    if rest.pop("_class_name", None) != model.__name__:
        raise ContentError(f"is no configuration of {model.__name__}")
    version = _checked(rest.pop("_diffusers_version", None), partial(_VERSION.validate_json, strict=True))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.__init__).parameters.items()
        if parameter.default is not parameter.empty
    }
    schema = SETTINGS[model.__name__]
    settings = check_document({k: v for k, v in rest.items() if k in schema.model_fields}, schema)
    known: dict[str, Any] = {"_class_name": model.__name__, "_diffusers_version": version}
    for name, value in rest.items():
        if name in schema.model_fields:
            known[name] = settings.model_dump(mode="json")[name]
        elif name in defaults and _is_default(value, defaults[name]):
            known[name] = value
        else:
            raise ContentError(f"holds {shown(name)}, which our trainings do not set so")
    return known


def _is_default(value: Any, default: Any) -> bool:
    """Whether a value of a JSON document is a default of Python: of the same type, with lists for tuples."""
    if isinstance(default, tuple | list):
        return isinstance(value, list) and len(value) == len(default) and all(map(_is_default, value, default))
    is_number = {type(value), type(default)} <= {int, float}
    return value == default and (is_number or type(value) is type(default))


# A selector.


class SelectorParams(Exact):
    """Parameters that every selector has."""

    n_per_class: Annotated[int, Field(ge=1, le=10**7)]
    random_state: Annotated[int, Field(ge=0, lt=2**31)]


class CommunityParams(SelectorParams):
    """Parameters of the selector that goes by communities."""

    markov_time: Annotated[float, Field(gt=0)]
    n_neighbors: Annotated[int, Field(ge=1, le=10**7)]
    num_trials: Annotated[int, Field(ge=1, le=10**6)]
    quota: Literal["proportional", "uniform", "sqrt"]
    ranking: Literal["modular_centrality", "random"]
    weighting: Literal["local_gaussian", "inverse_distance", "cosine"]


class KernelRidgeParams(SelectorParams):
    """Parameters of the selector that goes by kernel ridge regression."""

    max_candidates: Annotated[int, Field(ge=1, le=10**7)]
    n_targets: Annotated[int, Field(ge=1, le=10**7)]
    ridge: Annotated[float, Field(gt=0)]
    sweeps: Annotated[int, Field(ge=0, le=10**6)]
    width: Annotated[float, Field(gt=0)]


class Fitted(Exact):
    """What a selector has learned, beside arrays."""

    n_features_in_: Annotated[int, Field(ge=1, le=10**7)]


class SelectorVersions(Exact):
    """Versions of the packages that made a selection, without those that were not installed under this name."""

    histodistill: Version | None = None
    infomap: Version | None = None
    faiss: Version | None = Field(None, alias="faiss-cpu")
    scikit_learn: Version | None = Field(None, alias="scikit-learn")
    scipy: Version | None = None
    numpy: Version | None = None


class _SelectorDocument(Exact):
    format_version: Literal[1]
    fitted: Fitted
    arrays_sha256: Sha256
    versions: SelectorVersions


class PlainSelectorDocument(_SelectorDocument):
    """config.json of a selector that has no parameters of its own."""

    class_name: Literal[
        "RandomSelector",
        "KMeansSelector",
        "HerdingSelector",
        "KernelHerdingSelector",
        "KCenterSelector",
        "FacilityLocationSelector",
    ]
    params: SelectorParams


class CommunitySelectorDocument(_SelectorDocument):
    """config.json of the selector that goes by communities."""

    class_name: Literal["DistillSelector"]
    params: CommunityParams


class KernelRidgeDocument(_SelectorDocument):
    """config.json of the selector that goes by kernel ridge regression."""

    class_name: Literal["KernelRidgeSelector"]
    params: KernelRidgeParams


#: config.json of any selector.
SelectorDocument = PlainSelectorDocument | CommunitySelectorDocument | KernelRidgeDocument
_SELECTOR: TypeAdapter[SelectorDocument] = TypeAdapter(Annotated[SelectorDocument, Field(discriminator="class_name")])


def read_selector_config(data: bytes) -> SelectorDocument:
    """The configuration of a selector.

    Raises:
        ContentError: If it is none, or says anything else.
    """
    return _checked(parse_json(data), _SELECTOR.validate_json)


def write_selector_config(config: SelectorDocument, arrays_sha256: str) -> bytes:
    """The configuration as it is published, with the checksum of the arrays beside it."""
    values = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    order = ("class_name", "format_version", "params", "fitted", "arrays_sha256", "versions")
    document = {name: values[name] for name in order} | {"arrays_sha256": arrays_sha256}
    document["params"] = dict(sorted(values["params"].items()))
    return write_document(document, sort_keys=False)
