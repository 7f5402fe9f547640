"""One file per mechanism; the yaml files of conf/fusion are the registry."""
