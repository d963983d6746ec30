"""Criteria of the study of self-prediction, after Schwarzer et al. (2021).

An agent that predicts its own latents keeps them apart if their targets come
from a twin, itself behind a stop-gradient or a slow one; without a
stop-gradient they collapse. Neither costs return.
"""

import numpy as np

from experiments.studies.claims import (
  Claim,
  Setting,
  exceeds,
  last,
  no_worse,
  settings_of,
)
from siamrl.report.metrics import Table

COLUMNS = ('spr_std', 'train_return')


def judge(table: Table) -> list[Claim]:
  """Claims about twins of the latents, on a game with noise.

  Raises:
    ValueError: the table lacks a column or a setting.
  """
  found = {
    tuple(setting.point.values()): setting
    for setting in settings_of(table, 'spr_steps', 'target_paths', 'spr_target')
  }
  arms = {
    'a stop-gradient': ('q:hard+latent:self', 'twin'),
    'a slow twin': ('q:hard+latent:soft', 'twin'),
    'no stop-gradient': (None, 'online_gradient'),
  }

  def of(arm: str | None) -> Setting:
    for (steps, *rest), setting in found.items():
      if not steps if arm is None else steps and tuple(rest) == arms[arm]:
        return setting
    raise ValueError(f'no run with {arm or "spr_steps=0"}')

  free, plain = of('no stop-gradient'), of(None)
  claims = []
  for name in ('a stop-gradient', 'a slow twin'):
    arm = of(name)
    claims.append(
      exceeds(
        f'{name} keeps a larger normalized std than none '
        f'({np.mean(last(arm, "spr_std")):.3g} against '
        f'{np.mean(last(free, "spr_std")):.3g})',
        [last(arm, 'spr_std')],
        [last(free, 'spr_std')],
      )
    )
    claims.append(
      no_worse(
        f'predicting latents with {name} is not shown to cost return',
        [arm.height('train_return')],
        [plain.height('train_return')],
      )
    )
  return claims
