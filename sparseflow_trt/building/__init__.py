"""Parts of a build, joined of exporters, engines and validation."""
