"""A user's file that offers the defects of `siamrl.museum` to any launcher.

  python -m experiments.classic --user_file=experiments/studies/museum.py \\
      --target_update=lost_update
"""

from siamrl import museum

museum.register()
