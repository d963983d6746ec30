"""The claims of studies."""
