"""Objectives by name: each makes of a learner another one, and they compose.

    [[training.objective]]
    name = "ditto"
    strength = 0.5

They are applied in the order in which they are given, each to what the ones before have made. Where several bring a
model of the node's own, the last one's answers for the node (`Learner.personal`); the others are trained all the same.
What a method keeps is private to the node: it lies in params["private"] under the method's name, and no message holds
it, but for what its line in docs/medical.md says travels (a bulletin, an own model, a selector). So each method can be
given once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from p2pfl.methods.objectives.align import align
from p2pfl.methods.objectives.augmentation import augment
from p2pfl.methods.objectives.bottlegan import bottlegan
from p2pfl.methods.objectives.contrast import fedmri, moon
from p2pfl.methods.objectives.deputy import deputy
from p2pfl.methods.objectives.experts import experts
from p2pfl.methods.objectives.fedharmony import fedharmony
from p2pfl.methods.objectives.fedreplay import fedreplay
from p2pfl.methods.objectives.gradient import fedprox, proportional, ridge, sharpness
from p2pfl.methods.objectives.hetero_width import widths
from p2pfl.methods.objectives.label_graph import label_graph
from p2pfl.methods.objectives.label_shift import class_weights, fedsld, missing_classes
from p2pfl.methods.objectives.medisecfed import medisecfed
from p2pfl.methods.objectives.multitask import tasks
from p2pfl.methods.objectives.objective import Objective
from p2pfl.methods.objectives.personal import average, cusfl, ditto, iop, pfedme, soft_pull
from p2pfl.methods.objectives.reference_site import fl_mrcm
from p2pfl.methods.objectives.simplest_site import vafl
from p2pfl.methods.objectives.site_selector import selector
from p2pfl.methods.objectives.stain_gan import stain_gan

__all__ = [
    "OBJECTIVES",
    "Objective",
    "align",
    "augment",
    "average",
    "bottlegan",
    "class_weights",
    "cusfl",
    "deputy",
    "ditto",
    "experts",
    "fedharmony",
    "fedmri",
    "fedprox",
    "fedreplay",
    "fedsld",
    "fl_mrcm",
    "iop",
    "label_graph",
    "medisecfed",
    "missing_classes",
    "moon",
    "pfedme",
    "proportional",
    "ridge",
    "selector",
    "sharpness",
    "soft_pull",
    "stain_gan",
    "tasks",
    "vafl",
    "widths",
]

OBJECTIVES: Mapping[str, Callable[..., Objective]] = MappingProxyType(
    {
        "fedprox": fedprox,
        "pfedme": pfedme,
        "ditto": ditto,
        "cusfl": cusfl,
        "iop": iop,
        "soft_pull": soft_pull,
        "selector": selector,
        "average": average,
        "fedmri": fedmri,
        "moon": moon,
        "fedsld": fedsld,
        "missing_classes": missing_classes,
        "fl_mrcm": fl_mrcm,
        "fedreplay": fedreplay,
        "vafl": vafl,
        "tasks": tasks,
        "sharpness": sharpness,
        "ridge": ridge,
        "proportional": proportional,
        "deputy": deputy,
        "class_weights": class_weights,
        "augment": augment,
        "widths": widths,
        "fedharmony": fedharmony,
        "experts": experts,
        "align": align,
        "label_graph": label_graph,
        "stain_gan": stain_gan,
        "medisecfed": medisecfed,
        "bottlegan": bottlegan,
    }
)
"""Makers by name; each takes the experiment's optimizer and the arguments of its table."""
