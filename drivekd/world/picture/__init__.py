"""A scene becomes pixels and exact labels."""
