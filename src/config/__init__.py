"""Words on a command line -> a checked configuration -> objects; refuses in one sentence, without importing torch."""
