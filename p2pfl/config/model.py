"""The table [model] of an experiment: for each model what it takes.

A field that is not given is None, and what it then means stands with the function that makes the model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT, Count, Texts
from p2pfl.config.unions import Tagged, fields_of, inlined, members

Counts = Annotated[tuple[Count, ...], LIST]
Norm = Literal["batch", "group"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FirstModel:
    """How a model begins: what every kind of model has."""

    weights: str | None = None  # a file of safetensors that the first model is taken from
    rename: dict[str, str] | None = None  # beginning of a name in the file -> of a path in the model; "": left out
    fresh: Texts | None = None  # patterns of leaves that are drawn all the same


@dataclass(frozen=True, config=STRICT)
class LogisticModel(FirstModel):
    """Logistic regression."""

    name: Literal["logistic"]


@dataclass(frozen=True, config=STRICT)
class MlpModel(FirstModel):
    """A multilayer perceptron."""

    name: Literal["mlp"]
    hidden: Counts | None = None  # layer widths; [64]
    norm: Norm | None = None  # normalisation before each ReLU


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ConvolutionalModel(FirstModel):
    """What convolutional networks have, for images and for volumes."""

    channels: Counts | None = None  # channels of each block; [16, 32]
    norm: Norm | None = None  # normalisation before each ReLU
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # share of the last layer's inputs left out; 0
    residual: bool | None = None  # a residual block after each convolution; false


@dataclass(frozen=True, config=STRICT)
class CnnModel(ConvolutionalModel):
    """A convolutional network."""

    name: Literal["cnn"]


@dataclass(frozen=True, config=STRICT)
class Cnn3dModel(ConvolutionalModel):
    """A convolutional network for volumes."""

    name: Literal["cnn3d"]


@dataclass(frozen=True, config=STRICT)
class UnetModel(FirstModel):
    """A U-Net, from images to images, or volumes: for segmentation and reconstruction."""

    name: Literal["unet"]
    channels: Counts | None = None  # channels of each size of the image; [16, 32]
    norm: Norm | None = None  # normalisation before each ReLU
    residual: bool | None = None  # its output is added to the image; false


@dataclass(frozen=True, config=STRICT)
class ResnetModel(FirstModel):
    """A residual network."""

    name: Literal["resnet"]
    channels: Counts | None = None  # channels of each stage; [16, 32, 64, 128]
    blocks: Counts | None = None  # blocks of each stage; two
    norm: Norm | None = None  # normalisation after each convolution; group
    stem: Literal["small", "large"] | None = None  # the first convolution; small


@dataclass(frozen=True, config=STRICT)
class CnnGnnModel(FirstModel):
    """A convolutional network and a graph network over labels."""

    name: Literal["cnn_gnn"]
    channels: Counts | None = None  # channels of each block; [16, 32]
    width: Annotated[int, Field(ge=1)] | None = None  # features of each label; 16
    depth: Annotated[int, Field(ge=1)] | None = None  # graph convolutions before the last; 2
    norm: Norm | None = None  # normalisation before each ReLU of the blocks


@dataclass(frozen=True, config=STRICT)
class MmoeModel(FirstModel):
    """A multi-gate mixture of experts, for several tasks."""

    name: Literal["mmoe"]
    groups: Annotated[tuple[Annotated[tuple[Annotated[int, Field(ge=0)], ...], LIST], ...], LIST] | None = None  # tasks
    channels: Counts | None = None  # channels of each block before the layers; none
    hidden: Counts | None = None  # layer widths; [64]
    experts: Annotated[int, Field(ge=1)] | None = None  # how many; 4
    width: Annotated[int, Field(ge=1)] | None = None  # of each expert; 16


@dataclass(frozen=True, config=STRICT)
class FusionModel(FirstModel):
    """A network for a picture and the columns beside it."""

    name: Literal["fusion"]
    channels: Counts | None = None  # channels of each stage of the picture's encoder; [16, 32, 64, 128]
    blocks: Counts | None = None  # blocks of each stage; two
    norm: Norm | None = None  # normalisation after each convolution; group
    stem: Literal["small", "large"] | None = None  # the first convolution; small
    hidden: Counts | None = None  # widths of the layers that see both; [64]
    crosses: Annotated[int, Field(ge=0)] | None = None  # layers of the cross network; 2


@dataclass(frozen=True, config=STRICT)
class FunctionModel(FirstModel):
    """The value that a function of the user's own returns."""

    name: str  # "module:function"
    arguments: dict[str, Any] | None = None  # its arguments


Model = (
    LogisticModel | MlpModel | CnnModel | Cnn3dModel | UnetModel | ResnetModel | CnnGnnModel | MmoeModel | FusionModel
    | FunctionModel
)  # fmt: skip
"""[model]: what is trained."""
ModelTable = Annotated[Model, Tagged(("name",), group="p2pfl.models")]
KINDS = members(Model)
"""The dataclasses of [model]."""
_FIELDS = tuple(dict.fromkeys(name for kind in KINDS for name in fields_of(kind)))


@dataclass(frozen=True, config=STRICT)
class OtherModel:
    """[[other_model]]: nodes whose model is not that of [model]; beside these fields it has those of [model]."""

    nodes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], LIST]  # whose model it is
    model: Annotated[Model, Tagged(("name",), inline=True, group="p2pfl.models")]

    _gather = model_validator(mode="before")(inlined("model", _FIELDS))
