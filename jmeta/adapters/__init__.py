"""Between jmeta and other environment interfaces; a module each, which needs the extra of its name."""
