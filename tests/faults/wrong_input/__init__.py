"""Calls with arguments as people and accidents make them, and what has to hold whatever comes of them.

Each check draws its arguments, makes one call, and accepts either a result that is what the call promises, or an
``UpgradeError``. Model, config, files and the state of the process have to be as before in the second case.
``tests/test_wrong_input.py`` runs some examples of each, ``sweep_wrong_input.py`` thousands.
"""

from .configs import check_builder, check_config, check_schedule
from .files import check_load_baseline
from .models import check_find_targets, check_revert, check_upgrade
from .operator import check_layer, check_operator

CHECKS = dict(
    find_targets=check_find_targets,
    upgrade_=check_upgrade,
    revert_=check_revert,
    ZeroOffsetDCN=check_layer,
    deform_conv2d=check_operator,
    shorten_schedule=check_schedule,
    upgrade_config=check_config,
    DeformUpgrade=check_builder,
    load_baseline=check_load_baseline,
)
