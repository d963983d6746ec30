"""Networks: torsos that compute features, and heads that compute values."""
