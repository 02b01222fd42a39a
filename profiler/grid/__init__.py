"""Times over layers, width, length and context of a model that can be built in many sizes."""
