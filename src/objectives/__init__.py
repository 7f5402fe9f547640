"""What is learnt: one file an objective; the yaml files of conf/objective are the registry."""
