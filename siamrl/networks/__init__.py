"""Networks: torsos that see, heads that value."""
