"""Between jmeta and other libraries' environments: a module each, with an extra of its name."""
