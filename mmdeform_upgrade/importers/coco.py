# Copyright (c) mmdeform_upgrade contributors. Apache-2.0.
"""COCO's 80 classes, and their category ids among torchvision's 91 outputs (0 is the background)."""

from typing import List, Tuple

_NAMES = (
    'person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,'
    'parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,'
    'suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,'
    'tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,'
    'hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,'
    'cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,'
    'toothbrush'
)
CLASSES: Tuple[str, ...] = tuple(_NAMES.split(','))
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
OUTPUTS = 91


def foreground_rows(outputs: int) -> List[int]:
    """The file's indices of the network's classes, for a layer whose index 0 is the background."""
    return [index for index in range(1, outputs) if outputs != OUTPUTS or index not in UNUSED]


def classes_of(outputs: int) -> Tuple[str, ...]:
    """Names of the classes, where the number of outputs leaves no doubt about them."""
    return CLASSES if outputs == OUTPUTS else ()


def what_was_selected(outputs: int) -> str:
    """For the report."""
    return (
        f'{len(CLASSES)} of {OUTPUTS} rows selected (unused category ids left out)'
        if outputs == OUTPUTS
        else 'rows of the classes alone'
    )
