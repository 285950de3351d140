"""World models: they learn from the imagination of a learned simulator."""
