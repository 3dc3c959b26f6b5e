"""Settings: schema, command-line parsing, help text, presets."""
