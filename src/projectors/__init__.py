"""Between vision and fusion: one file a projector; the yaml files of conf/projector are the registry."""
