"""Parameters of the rules of the twin, for tests over all of them."""

PARAMETERS = dict(
  tau=0.3,
  tau_end=0.1,
  target_period=3,
  target_period_end=6,
  target_period_growth=1.5,
  degrees_of_freedom=1.5,
  target_schedule_steps=40,
  target_sync_period=2,
  target_count=3,
  target_paths='torso:soft+head:hard',
  twin_weight=0.2,
  projection_radius=1e6,
  ridge=1e-3,
)
